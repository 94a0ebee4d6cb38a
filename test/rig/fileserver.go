// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"io"
	"net/http"
	"path"
)

// fileServer serves the files that ADD fetches, under /files/, and leaves all
// else to the registry. A file under /files/dated/ has a Last-Modified time;
// one whose name says so is an archive; /files/missing/ has nothing. Below /git/
// are repositories, below /apt/ packages.
func fileServer(registry, git, apt http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/git/", git)
	mux.Handle("/", registry)
	mux.Handle("GET /apt/", apt)
	mux.HandleFunc("GET /files/missing/", http.NotFound)
	mux.HandleFunc("GET /files/", func(w http.ResponseWriter, req *http.Request) {
		data := []byte("content of " + path.Base(req.URL.Path) + "\n")
		if path.Ext(req.URL.Path) == ".gz" {
			data = servedArchive()
		}
		if path.Base(path.Dir(req.URL.Path)) == "dated" {
			w.Header().Set("Last-Modified", contextTime().Format(http.TimeFormat))
		}
		_, _ = io.Copy(w, bytes.NewReader(data))
	})
	return mux
}

func servedArchive() []byte {
	l, err := layerOf("application/vnd.oci.image.layer.v1.tar+gzip", []entry{dir("in"), owned(7, 8, file("in/archive", "archived\n"))})
	if err != nil {
		return nil
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil
	}
	defer rc.Close()
	data, _ := io.ReadAll(rc)
	return data
}
