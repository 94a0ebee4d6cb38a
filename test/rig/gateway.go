// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A Gateway is a server that speaks S3's protocol, checks signatures and knows
// conditions: versitygw.
type Gateway struct {
	http.Handler        // passes requests on to it
	Dir          string // has a directory for each bucket
	Key, Secret  string
}

// StartGateway starts a gateway with one bucket. It ends with the test.
func StartGateway(t testing.TB, bucket string) *Gateway {
	t.Helper()
	repo, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(repo, ".cache", "bin", "versitygw")
	if _, err := os.Stat(program); err != nil {
		const reason = "needs versitygw: hack/tools versitygw"
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip("skipped: " + reason)
	}
	g := &Gateway{Dir: t.TempDir(), Key: "planted-key-id", Secret: "planted-secret-key"}
	if err := os.Mkdir(filepath.Join(g.Dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "gw") //nolint:usetesting // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "--quiet", "--port", socket, "posix", g.Dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+g.Key, "ROOT_SECRET_KEY="+g.Secret)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	for range 500 {
		if conn, err := dial(t.Context(), "", ""); err == nil {
			_ = conn.Close()
			transport := &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}
			t.Cleanup(transport.CloseIdleConnections)
			g.Handler = &httputil.ReverseProxy{
				Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
				// The host is signed, so it stays what it was.
				Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "gateway" },
			}
			return g
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("versitygw does not answer:\n%s", out.Bytes())
	return nil
}
