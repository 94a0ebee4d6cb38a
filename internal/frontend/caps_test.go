// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCaps holds the features that the frontend is told of: a change is a
// promise that the ops keep, or a refusal that somebody will read.
func TestCaps(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	why := refused()
	for _, id := range llbCaps() {
		state := "honoured"
		if text, ok := why[id]; ok {
			state = "refused: " + text
		}
		fmt.Fprintf(&b, "%s %s\n", id, state)
	}
	for _, id := range gatewayCaps() {
		fmt.Fprintf(&b, "gateway %s\n", id)
	}
	const file = "testdata/caps.golden"
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
}
