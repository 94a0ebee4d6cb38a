// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"hako/internal/build"
)

// indexCommand holds what is done with indexes of images.
func (a *App) indexCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "index",
		Short: "Make one image for several platforms of images that exist",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(a.indexCreateCommand())
	return cmd
}

func (a *App) indexCreateCommand() *cobra.Command {
	var v registryValues
	var annotations []string
	var opt build.IndexOptions
	cmd := &cobra.Command{
		Use:   "create [flags] REF IMAGE...",
		Short: "Tag an index of images that were pushed",
		Long: `Make an index of images that exist already and tag it REF.

An IMAGE is a reference with a tag or a digest, a digest alone for one in REF's
repository, or an OCI layout (oci:DIR[:TAG]). Of an index all its images are taken.
The platform of an image is that of its config; two images for one platform are
an error. What lies in another repository is mounted or copied first.

Equal images give an index with the same digest, in whatever order they are named.
Standard output carries reference@digest alone, or the index with --dry-run.`,
		Example: `  hako index create registry.example.com/app:1.4 registry.example.com/app:1.4-amd64 registry.example.com/app:1.4-arm64`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageErrorf("want the index's name and at least one image: hako index create REF IMAGE...")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&annotations, "annotation", nil, "`[LEVEL:]key=value` for the index, or for an entry: manifest-descriptor[os/arch] (repeatable)")
	f.BoolVar(&opt.DryRun, "dry-run", false, "print the index and push nothing")
	f.StringVar(&opt.DigestFile, "digest-file", "", "write the digest to `FILE`")
	v.addPushFlags(f)
	v.addRegistryFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.Index == nil {
			return errors.New("index is not part of this program yet")
		}
		if err := applyEnv(f, a.Env, nil); err != nil {
			return err
		}
		var err error
		if opt.Annotations, err = indexAnnotations(annotations); err != nil {
			return err
		}
		if opt.Registry, err = v.registry(); err != nil {
			return err
		}
		opt.Ref, opt.Images, opt.Env = args[0], args[1:], a.Env
		x, err := a.Index(cmd.Context(), opt)
		if err != nil {
			return err
		}
		return a.printIndex(x, opt.DryRun)
	}
	return cmd
}

// indexAnnotations are for the index where they do not say for what.
func indexAnnotations(items []string) ([]build.Annotation, error) {
	var list []build.Annotation
	for _, item := range items {
		parsed, err := parseAnnotation(item, "index")
		if err != nil {
			return nil, err
		}
		for _, one := range parsed {
			if one.Level != "index" && one.Level != "manifest-descriptor" {
				return nil, usageErrorf("--annotation %q: the images exist already; there are index and manifest-descriptor", item)
			}
		}
		list = append(list, parsed...)
	}
	return list, nil
}

func (a *App) printIndex(x *build.Index, isDryRun bool) error {
	if isDryRun {
		_, err := fmt.Fprintf(a.Stdout, "%s\n", x.JSON)
		return err
	}
	_, err := fmt.Fprintf(a.Stdout, "%s@%s\n", x.Ref, x.Digest)
	return err
}
