// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"hako/internal/build"
)

// cacheValues are the flags about results that are kept between builds.
type cacheValues struct {
	cache, noPushCache, explainCache bool
	cacheRepo, cacheKeyFile          string
	cacheTTL                         time.Duration
	cacheCopies, cacheRuns           bool
	cacheFrom, cacheTo               []string
}

func (v *cacheValues) addCacheFlags(f *pflag.FlagSet) {
	f.BoolVar(&v.cache, "cache", false, "take results of earlier builds from --cache-repo and keep this one's there")
	f.StringVar(&v.cacheRepo, "cache-repo", "", "`REPOSITORY` of the cache, or oci:DIR (default: the first destination's repository with /cache)")
	f.DurationVar(&v.cacheTTL, "cache-ttl", 336*time.Hour, "age from which results are not taken; 0 is none")
	f.BoolVar(&v.noPushCache, "no-push-cache", false, "keep nothing in the cache")
	f.BoolVar(&v.cacheCopies, "cache-copy-layers", true, "cache steps that copy files")
	f.BoolVar(&v.cacheRuns, "cache-run-layers", true, "cache steps that run commands")
	f.StringArrayVar(&v.cacheFrom, "cache-from", nil, "take results from here too: a `PLACE`, type=registry,ref=REPOSITORY[:TAG], type=local,src=DIR or type=s3,bucket=BUCKET (repeatable)")
	f.StringArrayVar(&v.cacheTo, "cache-to", nil, "keep results here too: a `PLACE`, type=registry,ref=REPOSITORY[:TAG], type=local,dest=DIR, type=s3,bucket=BUCKET or type=inline (repeatable)")
	f.StringVar(&v.cacheKeyFile, "cache-key-file", "", "sign what is kept with the key in `FILE` and take nothing that is not")
	f.BoolVar(&v.explainCache, "explain-cache", false, "say at the end of each step whether it was cached and why not")
}

// setCache turns the flags into options.
func (v *cacheValues) setCache(opt *build.Options) error {
	if v.cacheTTL < 0 {
		return usageErrorf("--cache-ttl=%s: want an age of 0 or more, like 336h", v.cacheTTL)
	}
	c := build.CacheOptions{
		Enabled: v.cache, Repo: v.cacheRepo, TTL: v.cacheTTL, NoPush: v.noPushCache, NoCopies: !v.cacheCopies, NoRuns: !v.cacheRuns,
		KeyFile: v.cacheKeyFile, Explain: v.explainCache,
	}
	for _, item := range v.cacheFrom {
		list, err := parseCachePlaces("cache-from", item, "src", opt.Env)
		if err != nil {
			return err
		}
		c.From = append(c.From, list...)
	}
	for _, item := range v.cacheTo {
		if kind, _, _ := strings.Cut(item, ","); kind == "type=inline" || kind == "inline" {
			names := opt.Names()
			if len(names) == 0 {
				return usageErrorf("--cache-to=%s: the image has no name to be found beside: add -d or -t", item)
			}
			// Beside the image, in its repository, where --cache-from finds it.
			c.To = append(c.To, build.CachePlace{Ref: names[0], Beside: true})
			continue
		}
		list, err := parseCachePlaces("cache-to", item, "dest", opt.Env)
		if err != nil {
			return err
		}
		c.To = append(c.To, list...)
	}
	opt.Cache = c
	return nil
}

// writeOutcomes prints what became of each step, a line each.
func writeOutcomes(w io.Writer, list []build.CacheOutcome) {
	if len(list) == 0 {
		return
	}
	wide := 0
	for _, o := range list {
		wide = max(wide, len(o.Where))
	}
	misses := 0
	var cost time.Duration
	for _, o := range list {
		what, rest := "hit ", fmt.Sprintf("%s, made %s", decimal(o.Size), o.Made.UTC().Format("2006-01-02 15:04"))
		switch {
		case o.Hit && o.Made.IsZero():
			rest = "not needed: what was made of it was found"
		case !o.Hit:
			what, rest = "MISS", o.Why
			misses++
			cost += o.Took
		}
		fmt.Fprintf(w, " %-*s  %s  %-40s  %s\n", wide, o.Where, what, o.Text, rest)
	}
	if misses > 0 {
		s := "misses"
		if misses == 1 {
			s = "miss"
		}
		fmt.Fprintf(w, "%s %s cost %.1f s\n", strconv.Itoa(misses), s, cost.Seconds())
	}
}
