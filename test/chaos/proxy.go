// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package chaos puts a proxy between hako and a registry that drops requests
// and answers, delays, refuses with 429 and 503, kills uploads in the middle and
// cuts downloads short. What it does is drawn from a seed.
package chaos

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A fault is one thing that goes wrong.
type fault string

const (
	dropRequest fault = "the request does not arrive"
	dropAnswer  fault = "the answer does not arrive"
	delay       fault = "the answer takes its time"
	refuse429   fault = "429"
	refuse503   fault = "503"
	killUpload  fault = "an upload ends in the middle"
	cutDownload fault = "a download ends in the middle"
)

// A proxy is a registry at another address, on a bad day. It ends: a hand of
// faults is dealt out in the order that the seed gives, and then all goes well.
type proxy struct {
	upstream string // host:port
	client   http.RoundTripper

	mu    sync.Mutex
	rand  *rand.Rand
	hand  []fault
	dealt map[fault]int
	// uploads and downloads that went on where they were
	uploads, downloads int
}

func newProxy(upstream string, seed uint64) *proxy {
	p := &proxy{
		upstream: upstream, client: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		rand: rand.New(rand.NewPCG(seed, 1)), dealt: map[fault]int{},
	}
	for f, n := range map[fault]int{dropRequest: 3, dropAnswer: 3, delay: 3, refuse429: 2, refuse503: 3, killUpload: 4, cutDownload: 4} {
		p.hand = append(p.hand, slices.Repeat([]fault{f}, n)...)
	}
	slices.Sort(p.hand) // the map's order is not the seed's
	p.rand.Shuffle(len(p.hand), func(i, j int) { p.hand[i], p.hand[j] = p.hand[j], p.hand[i] })
	return p
}

// deal takes the next fault that fits a request, "" for none, and a number from
// 0 up to but not 1.
func (p *proxy) deal(r *http.Request) (fault, float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Header.Get("Content-Range") != "" {
		p.uploads++
	}
	if r.Header.Get("Range") != "" {
		p.downloads++
	}
	where := p.rand.Float64()
	// Some requests get through at any time, so that there is something to break.
	if p.rand.IntN(3) == 0 {
		return "", where
	}
	i := slices.IndexFunc(p.hand, func(f fault) bool {
		switch f {
		case killUpload:
			return r.ContentLength > 1<<16
		case cutDownload:
			return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
		default:
			return true
		}
	})
	if i < 0 {
		return "", where
	}
	f := p.hand[i]
	p.hand = slices.Delete(p.hand, i, i+1)
	p.dealt[f]++
	return f, where
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, where := p.deal(r)
	switch f {
	case dropRequest:
		panic(http.ErrAbortHandler)
	case refuse429, refuse503:
		_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
		w.Header().Set("Retry-After", "0")
		code := http.StatusTooManyRequests
		if f == refuse503 {
			code = http.StatusServiceUnavailable
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "<html>no registry, but what stands before it</html>")
		return
	case delay:
		time.Sleep(time.Duration(where * float64(50*time.Millisecond)))
	}
	resp, err := p.forward(r, f, where)
	if err != nil || f == dropAnswer || f == killUpload {
		if err == nil {
			resp.Body.Close()
		}
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	if f == cutDownload && resp.ContentLength > 1 {
		_, _ = io.CopyN(w, resp.Body, int64(where*float64(resp.ContentLength)))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// forward sends a request on. Of an upload that is to be killed the registry
// gets the beginning, and then the connection ends.
func (p *proxy) forward(r *http.Request, f fault, where float64) (*http.Response, error) {
	var body io.Reader = r.Body
	if f == killUpload {
		body = io.MultiReader(io.LimitReader(r.Body, int64(where*float64(r.ContentLength))), broken{})
	}
	if r.ContentLength == 0 {
		body = http.NoBody
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+p.upstream+r.URL.RequestURI(), body)
	if err != nil {
		return nil, err
	}
	out.Header, out.ContentLength = r.Header.Clone(), r.ContentLength
	out.Host = r.Host // so that Locations lead back here
	return p.client.RoundTrip(out)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("the connection ends here") }

// String tells what went wrong so far.
func (p *proxy) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%v, %d left, %d uploads and %d downloads resumed", p.dealt, len(p.hand), p.uploads, p.downloads)
}
