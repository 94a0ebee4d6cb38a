// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"

	"hako/internal/build"
	"hako/internal/layer"
	"hako/internal/tree"
)

// explanation returns what there is to say beyond the error's line: its own
// words, or ours for faults that many packages run into.
func explanation(err error) string {
	if e, ok := errors.AsType[explainer](err); ok {
		if text := e.Explain(); text != "" {
			return text
		}
	}
	if _, ok := errors.AsType[*tree.SizeError](err); ok || errors.Is(err, layer.ErrChanged) {
		return " why     the file was written to while the build read it; the image would have held a mixture\n" +
			" try     build from a directory that nothing writes to, or let .dockerignore leave the file out"
	}
	if errors.Is(err, layer.ErrDigestMismatch) {
		return " why     the layer's bytes are not those that the image's manifest and config promise\n" +
			" try     push the image again, or name another tag; a proxy or mirror on the way may hold a damaged copy"
	}
	if _, ok := errors.AsType[*layer.ReservedNameError](err); ok {
		return " try     rename the file, or leave it out (.dockerignore, rm in the same RUN)"
	}
	if _, ok := errors.AsType[*layer.EscapeError](err); ok {
		return " why     whoever unpacked it as it is written would write outside the image: such a layer is broken, or an attack\n" +
			" try     another base; tell whoever made this one"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
		return " try     check the host's name; this place's name servers do not know it"
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return " why     what was being read ends too early: it was cut off when it was made or copied\n try     make or fetch it again"
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return explainFull(err)
	}
	return ""
}

// explainFull says which disk is full.
func explainFull(err error) string {
	path := "."
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		path = filepath.Dir(e.Path)
	}
	const try = "\n try     a larger volume, more ephemeral-storage, or --work-dir (KANIKO_DIR) on a disk with room"
	where, free, total := build.DiskSpace(path)
	if total == 0 {
		return " disk    " + path + " is full" + try
	}
	return fmt.Sprintf(" disk    %s is full: it holds %s in all, %s free now that this build's files are gone%s", where, decimal(total), decimal(free), try)
}
