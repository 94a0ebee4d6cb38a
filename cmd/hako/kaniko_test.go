// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestKanikoScripts runs the scripts about what kaniko's users have in their
// pipelines. $WEB serves the files of $WORK/srv; $SECURE, with a certificate
// that $CA signed, is a registry and takes what is PUT into $WORK/srv, but
// /denied. As a proxy, $REGISTRY is any
// registry over plain HTTP, and $WEB leads to $SECURE, known as example.com.
func TestKanikoScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/kaniko",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"image": describeImage},
		Setup: func(env *testscript.Env) error {
			srv := filepath.Join(env.WorkDir, "srv")
			reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
			secure := httptest.NewUnstartedServer(takePuts(srv, registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
			secure.Config.ErrorLog = log.New(io.Discard, "", 0)
			secure.StartTLS()
			web := httptest.NewServer(tunnel(secure.Listener.Addr().String(), http.FileServer(http.Dir(srv))))
			env.Defer(reg.Close)
			env.Defer(web.Close)
			env.Defer(secure.Close)
			cert := filepath.Join(env.WorkDir, "ca.pem")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("REGISTRY", reg.Listener.Addr().String())
			env.Setenv("WEB", web.Listener.Addr().String())
			env.Setenv("SECURE", secure.Listener.Addr().String())
			env.Setenv("CA", cert)
			env.Setenv("HAKO_WORK_DIR", filepath.Join(env.WorkDir, "work"))
			return os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600)
		},
	})
}

// tunnel is a proxy that leads every connection to addr.
func tunnel(addr string, files http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			files.ServeHTTP(w, r)
			return
		}
		there, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", addr)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer there.Close()
		w.WriteHeader(http.StatusOK)
		here, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		go func() { _, _ = io.Copy(there, buffered); there.Close() }()
		_, _ = io.Copy(here, there)
	})
}

func takePuts(dir string, reg http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/") {
			reg.ServeHTTP(w, r)
			return
		}
		if r.Method != http.MethodPut || r.URL.Path == "/denied" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		data, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, path.Base(r.URL.Path)), append([]byte(r.Header.Get("Content-Type")+" "), data...), 0o600)
		}
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
}

// describeImage is "image LAYOUT FILE": it writes media types, history, labels
// and the entries of all layers to a file.
func describeImage(ts *testscript.TestScript, _ bool, args []string) {
	text, err := imageText(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

func imageText(dir string) (string, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return "", err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return "", err
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return "", err
	}
	mt, err := img.MediaType()
	if err != nil {
		return "", err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", mt)
	for _, h := range cf.History {
		fmt.Fprintf(&b, "history %s%s\n", strings.ReplaceAll(h.CreatedBy, "\n", " "), map[bool]string{true: " (empty)"}[h.EmptyLayer])
	}
	layers, err := img.Layers()
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		if err := layerText(&b, l); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func layerText(b *strings.Builder, l v1.Layer) error {
	mt, err := l.MediaType()
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "layer %s\n", mt)
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "  %s\n", h.Name)
	}
}
