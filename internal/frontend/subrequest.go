// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"maps"
	"strconv"
)

// Names of the questions that a frontend answers about a Dockerfile.
const (
	RequestLint    = "frontend.lint"
	RequestOutline = "frontend.outline"
	RequestTargets = "frontend.targets"
)

// An Answer is what a frontend says about a Dockerfile.
type Answer struct {
	Text   []byte // for people
	JSON   []byte // for programs
	Status int    // exit status to give: of a lint 1 if there are findings
}

// Subrequest asks the frontend about the Dockerfile instead of building it.
func Subrequest(ctx context.Context, opt Options, name string) (*Answer, error) {
	opts := maps.Clone(opt.Opts)
	if opts == nil {
		opts = map[string]string{}
	}
	opts["requestid"] = name
	res, err := run(ctx, opt, opts)
	if err != nil {
		return nil, err
	}
	if res == nil {
		return &Answer{}, nil
	}
	a := &Answer{Text: res.Metadata["result.txt"], JSON: res.Metadata["result.json"]}
	if s := res.Metadata["result.statuscode"]; len(s) > 0 {
		if a.Status, err = strconv.Atoi(string(s)); err != nil {
			return nil, fmt.Errorf("read the status of %s: %w", name, err)
		}
	}
	return a, nil
}
