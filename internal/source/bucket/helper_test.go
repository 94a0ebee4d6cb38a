// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"hako/internal/source"
	"hako/internal/source/bucket"
	"hako/internal/store"
	"hako/internal/tree/treetest"
)

// contextTar is the archive that all servers have.
func contextTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "Dockerfile", Mode: 0o644, ModTime: time.Unix(0, 0)}),
		w.Close(), z.Close(),
	); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const contextList = "/Dockerfile file 0644\n"

// clear leaves no credentials in the environment, nor files that have some.
func clear(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "GOOGLE_") || strings.HasPrefix(name, "S3_") {
			t.Setenv(name, "")
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	none := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(none.Close)
	t.Setenv("GCE_METADATA_HOST", none.Listener.Addr().String())
}

// fetch reads an address as a build context and lists it.
func fetch(t *testing.T, client *http.Client, address string) (string, error) {
	t.Helper()
	st, err := store.Open(treetest.MemoryDir(t))
	if err != nil {
		t.Fatal(err)
	}
	from, err := bucket.Open(address, bucket.Options{HTTP: client, Getenv: os.Getenv})
	if err != nil {
		return "", err
	}
	a, err := source.FetchArchive(t.Context(), st, from, nil)
	if err != nil {
		return "", err
	}
	defer a.Close()
	return treetest.List(t, a, ""), nil
}

// A want is what fetching an address comes to: a list, or an error with a hint.
type want struct{ address, err, hint string }

func (w want) check(t *testing.T, client *http.Client, secrets ...string) {
	t.Helper()
	got, err := fetch(t, client, w.address)
	if w.err == "" {
		if err != nil || got != contextList {
			t.Errorf("%s: %s, %v", w.address, got, err)
		}
		return
	}
	if err == nil || !strings.HasSuffix(err.Error(), w.err) {
		t.Errorf("%s: %v, want %s", w.address, err, w.err)
		return
	}
	x, ok := errors.AsType[interface {
		error
		Explain() string
	}](err)
	text := err.Error()
	if ok {
		text += "\n" + x.Explain()
	}
	if w.hint != "" && !strings.Contains(text, w.hint) {
		t.Errorf("%s: it says\n%s\nwant %s", w.address, text, w.hint)
	}
	for _, s := range secrets {
		if strings.Contains(text, s) || strings.Contains(fmt.Sprintf("%+v", err), s) {
			t.Errorf("%s: the secret %q is in\n%s", w.address, s, text)
		}
	}
}

// only returns a client whose every connection goes to one server.
func only(network, address string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
}

// stand returns a client for which h answers in the place of all hosts.
func stand(t *testing.T, h http.HandlerFunc) *http.Client {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return only("tcp", s.Listener.Addr().String())
}

// freeAddress returns an address for a server to take.
func freeAddress(t *testing.T) (address, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	_, port, _ = net.SplitHostPort(address)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return address, port
}

// start runs a server that hack/tools has built and waits until it answers.
func start(t *testing.T, name, network, address string, env []string, args ...string) {
	t.Helper()
	program, err := filepath.Abs("../../../.cache/bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: hack/tools %s builds it", name, name)
		}
		t.Skipf("no %s here: hack/tools %s builds it", name, name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for {
		conn, err := net.Dial(network, address)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case err := <-done:
			done <- err
			t.Fatalf("%s: %v\n%s", name, err, out.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func body(r *http.Request) string {
	b, _ := io.ReadAll(r.Body)
	return string(b)
}
