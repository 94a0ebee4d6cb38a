// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"hako/internal/build"
)

// A placeFlag is one value of --cache-from or --cache-to.
type placeFlag struct {
	flag, item string
	attrs      map[string]string
	order      []string // keys, as they were given
}

// mayHide tells that a value may hold keys, so that no message repeats it.
var mayHide = regexp.MustCompile(`(?i)s3|key|token|secret`)

// bad says what is wrong with the value.
func (p *placeFlag) bad(format string, args ...any) error {
	item := p.item
	if mayHide.MatchString(item) {
		item = "…"
	}
	return usageErrorf("--%s=%s: "+format, append([]any{p.flag, item}, args...)...)
}

// parseCachePlaces reads REPOSITORY[:TAG] or buildx's type=…,key=value,…; dir is the
// key of a directory. One value can name several places.
func parseCachePlaces(flag, item, dir string, env build.Env) ([]build.CachePlace, error) {
	p := &placeFlag{flag: flag, item: item, attrs: map[string]string{}}
	list, err := fields(flag, item)
	if err != nil {
		return nil, p.bad("it is no list of key=value")
	}
	if len(list) == 1 && !strings.Contains(item, "=") {
		return []build.CachePlace{build.ParseCachePlace(item)}, nil
	}
	for i, field := range list {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, p.bad("item %d is not key=value", i+1)
		}
		p.attrs[key] = value
		p.order = append(p.order, key)
	}
	switch p.attrs["type"] {
	case "registry":
		ref, err := p.single("ref")
		return []build.CachePlace{{Ref: ref}}, err
	case "local":
		path, err := p.single(dir)
		return []build.CachePlace{{Dir: path}}, err
	case "s3":
		return p.buckets(env)
	}
	return nil, p.bad("there are type=registry, type=local, type=s3 and, to write, type=inline")
}

// only refuses what cannot be honoured.
func (p *placeFlag) only(known ...string) error {
	// What only tells the form of BuildKit's own cache, or what happens anyway:
	// all steps are kept, and a cache that fails fails no build.
	known = append(known, "type", "mode", "ignore-error", "image-manifest", "oci-mediatypes", "digest", "tag")
	for i, key := range p.order {
		switch {
		case slices.Contains(known, key):
		case mayHide.MatchString(p.item) && !slices.Contains(otherAttributes(), key):
			return p.bad("item %d is not supported", i+1) // it may be part of a key with a comma
		default:
			return p.bad("%s is not supported", key)
		}
	}
	return nil
}

// otherAttributes are those that buildx has for caches and hako has not.
func otherAttributes() []string {
	return []string{"compression", "compression-level", "force-compression", "ref", "src", "dest", "scope", "url"}
}

// single returns the one attribute that a place needs.
func (p *placeFlag) single(needed string) (string, error) {
	if err := p.only(needed); err != nil {
		return "", err
	}
	if p.attrs[needed] == "" {
		return "", p.bad("%s= is missing", needed)
	}
	return p.attrs[needed], nil
}

// buckets reads the attributes of type=s3, as buildx has them.
func (p *placeFlag) buckets(env build.Env) ([]build.CachePlace, error) {
	a := p.attrs
	if err := p.only(
		"bucket", "region", "endpoint_url", "use_path_style", "access_key_id", "secret_access_key", "session_token",
		"prefix", "blobs_prefix", "manifests_prefix", "name", "upload_parallelism", "touch_refresh",
	); err != nil {
		return nil, err
	}
	place := build.S3Place{
		Bucket: cmp.Or(a["bucket"], env.Get("AWS_BUCKET")), Region: a["region"], Endpoint: a["endpoint_url"],
		AccessKeyID: build.Hidden(a["access_key_id"]), SecretKey: build.Hidden(a["secret_access_key"]), SessionToken: build.Hidden(a["session_token"]),
		Prefix: a["prefix"], Blobs: a["blobs_prefix"], Manifests: a["manifests_prefix"],
	}
	switch {
	case place.Bucket == "":
		return nil, p.bad("bucket= is missing")
	case strings.ContainsAny(place.Bucket, "/@?#%: "):
		return nil, p.bad("bucket= is no name of a bucket")
	case (place.AccessKeyID == "") != (place.SecretKey == ""):
		return nil, p.bad("access_key_id and secret_access_key belong together")
	case place.SessionToken != "" && place.SecretKey == "":
		return nil, p.bad("session_token needs access_key_id and secret_access_key")
	case !slices.Contains([]string{"", "min", "max"}, a["mode"]):
		return nil, p.bad("mode is min or max")
	}
	if u, err := url.Parse(place.Endpoint); err != nil || u.User != nil || u.RawQuery != "" || place.Endpoint != "" && !slices.Contains([]string{"http", "https"}, u.Scheme) {
		return nil, p.bad("endpoint_url is an http or https URL without a password or a query")
	}
	if err := p.tune(&place); err != nil {
		return nil, err
	}
	if a["name"] == "" {
		return []build.CachePlace{{S3: place}}, nil
	}
	var list []build.CachePlace
	for name := range strings.SplitSeq(a["name"], ";") {
		if name == "" {
			return nil, p.bad("name is a name, or several with ; between them")
		}
		place.Name = name
		list = append(list, build.CachePlace{S3: place})
	}
	return list, nil
}

// tune reads what says how the bucket is used.
func (p *placeFlag) tune(place *build.S3Place) (err error) {
	if s := p.attrs["use_path_style"]; s != "" {
		inPath, err := strconv.ParseBool(s)
		if err != nil {
			return p.bad("use_path_style is true or false")
		}
		place.PathStyle = strconv.FormatBool(inPath)
	}
	if s := p.attrs["upload_parallelism"]; s != "" {
		if place.Uploads, err = strconv.Atoi(s); err != nil || place.Uploads < 1 || place.Uploads > 64 {
			return p.bad("upload_parallelism is a number from 1 to 64")
		}
	}
	if s := p.attrs["touch_refresh"]; s != "" {
		if place.Refresh, err = time.ParseDuration(s); err != nil || place.Refresh <= 0 {
			return p.bad("touch_refresh is a time like 24h")
		}
	}
	return nil
}
