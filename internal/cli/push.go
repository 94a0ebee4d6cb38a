// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"hako/internal/build"
	"hako/internal/progress"
)

// pushCommand sends an image that was built before; "executor push" is the same.
func (a *App) pushCommand() *cobra.Command {
	var v registryValues
	var opt build.PushOptions
	var mode string
	cmd := &cobra.Command{
		Use:   "push [flags] IMAGE",
		Short: "Push an image that lies in an OCI layout or an archive",
		Long: `Push an image that lies in an OCI layout or an archive, as it is there: nothing
is compressed again, and the digest stays.

IMAGE is an OCI layout directory, a tar of one, or an archive as docker save and
--tar-path write it. Where it holds several images, PATH:NAME is one of them by
tag, name or digest. An index goes with all its images.

A build whose push fails keeps its image in a layout and prints the command that
sends it. Standard output carries a line reference@digest per destination.`,
		Example: `  hako push app.tar -d registry.example.com/app:1.4`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageErrorf("want one image: hako push LAYOUT|TAR -d NAME")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetNormalizeFunc(canonicalName)
	f.StringArrayVarP(&opt.Destinations, "destination", "d", nil, "push to this `NAME` (repeatable)")
	f.StringVar(&opt.DigestFile, "digest-file", "", "write the digest to `FILE`")
	f.StringVar(&opt.ImageNameDigestFile, "image-name-with-digest-file", "", "write repository@digest lines to `FILE`")
	f.StringVar(&opt.ImageNameTagDigestFile, "image-name-tag-with-digest-file", "", "write repository:tag@digest lines to `FILE`")
	f.StringVar(&mode, "progress", "auto", "auto, tty, plain, rawjson, quiet or none")
	v.addRegistryFlags(f)
	v.addPushFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.Push == nil {
			return errors.New("push is not part of this program yet")
		}
		if err := applyEnv(f, a.Env, nil); err != nil {
			return err
		}
		if len(opt.Destinations) == 0 {
			return usageErrorf("nowhere to push to: add -d REGISTRY/NAME:TAG")
		}
		var err error
		if opt.Registry, err = v.registry(); err != nil {
			return err
		}
		opt.Image, opt.Env = args[0], a.Env
		return a.showPush(cmd.Context(), opt, mode)
	}
	return cmd
}

// showPush pushes under a display and prints what was pushed.
func (a *App) showPush(ctx context.Context, opt build.PushOptions, mode string) error {
	display, err := progress.NewDisplay(a.Stderr, mode, a.isTerminal)
	if err != nil {
		return usageErrorf("--progress: %v", err)
	}
	pushed, err := a.Push(ctx, opt, display)
	if closeErr := display.Close(); closeErr != nil && !errors.Is(closeErr, progress.ErrStalled) {
		err = errors.Join(err, closeErr)
	}
	for _, p := range pushed {
		if _, werr := fmt.Fprintf(a.Stdout, "%s@%s\n", p.Ref, p.Digest); werr != nil {
			err = errors.Join(err, fmt.Errorf("write reference: %w", werr))
		}
	}
	return err
}
