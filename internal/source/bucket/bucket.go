// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package bucket reads build contexts from Amazon S3 and what speaks its
// protocol, Google Cloud Storage, and Azure Blob Storage. The clouds' own
// libraries are used here and nowhere else: they look for credentials in the
// environment, in files and at the machine's metadata server, each as its vendor
// documents it, and are asked before anything of the file system moves.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hako/internal/source"
)

const (
	gcsScheme = "gs://"
	s3Scheme  = "s3://"

	// defaultObject is the object of a bucket that is named alone, as kaniko has it.
	defaultObject = "context.tar.gz"

	// credentialWait bounds the search for credentials: metadata servers that are
	// not there answer by silence.
	credentialWait = 6 * time.Second
)

// Options say how clouds are reached.
type Options struct {
	// HTTP reaches the storage. Its transport is an *http.Transport.
	HTTP *http.Client
	// Getenv reads the environment, for what is not the libraries' own.
	Getenv func(name string) string
}

// Is reports whether a context is in a bucket.
func Is(address string) bool {
	return strings.HasPrefix(address, gcsScheme) || strings.HasPrefix(address, s3Scheme) || isAzure(address)
}

// Open returns the object that address names. Nothing is sent yet.
func Open(address string, opt Options) (source.Remote, error) {
	switch {
	case strings.HasPrefix(address, gcsScheme):
		o, err := parse(address, gcsScheme)
		return &gcsObject{object: o, Options: opt}, err
	case strings.HasPrefix(address, s3Scheme):
		o, err := parse(address, s3Scheme)
		return &s3Object{object: o, Options: opt}, err
	case isAzure(address):
		return openAzure(address, opt)
	}
	return nil, errors.New("it is in no bucket")
}

// An object is one file of a bucket.
type object struct{ scheme, bucket, key string }

func (o object) String() string { return o.scheme + o.bucket + "/" + o.key }

func parse(address, scheme string) (object, error) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(address, scheme), "/")
	o := object{scheme, bucket, key}
	if bucket == "" || strings.ContainsAny(bucket, "@?#%") {
		return o, fmt.Errorf("%s: want %sBUCKET/OBJECT", scheme, scheme)
	}
	// kaniko reads it as a URL.
	if plain, err := url.PathUnescape(key); err == nil {
		o.key = plain
	}
	if o.key == "" {
		o.key = defaultObject
	}
	return o, nil
}

// refusal is a server's no, in words that hold no secrets.
func refusal(status int, code, hint string, err error) error {
	return &source.RemoteError{What: answered(status, code), Hint: hint, Err: err}
}

// answered returns "404 Not Found (NoSuchKey)".
func answered(status int, code string) string {
	text := http.StatusText(status)
	what := fmt.Sprintf("%d %s", status, text)
	if code != "" && code != text && code != strings.ReplaceAll(text, " ", "") {
		what += " (" + code + ")"
	}
	return what
}

// unreachable takes the URL, whose query may be a signature, out of an error of
// the network; the libraries' own words around it name the URL too.
func unreachable(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// search bounds the time that finding credentials takes.
func search(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, credentialWait)
}
