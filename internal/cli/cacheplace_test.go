// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"hako/internal/build"
)

// TestBucketRefused: what is wrong with a bucket's attributes is said without the
// keys that are among them.
func TestBucketRefused(t *testing.T) {
	t.Parallel()
	const keys = ",access_key_id=planted1,secret_access_key=planted2,session_token=planted3"
	for value, want := range map[string]string{
		"type=s3" + keys:                                              "bucket= is missing",
		"type=s3,bucket=a/b" + keys:                                   "bucket= is no name of a bucket",
		"type=s3,bucket=b,compression=zstd" + keys:                    "compression is not supported",
		"type=s3,bucket=b" + keys + ",planted4":                       "item 6 is not key=value",
		"type=s3,bucket=b" + keys + ",planted4=x":                     "item 6 is not supported",
		"type=s3,bucket=b,secret_access_ky=planted4":                  "item 3 is not supported",
		"bucket=b" + keys:                                             "there are type=registry, type=local, type=s3",
		"type=s3,bucket=b,\"secret_access_key=planted4":               "it is no list of key=value",
		"type=s3,bucket=b,access_key_id=planted4":                     "access_key_id and secret_access_key belong together",
		"type=s3,bucket=b,session_token=planted4":                     "session_token needs",
		"type=s3,bucket=b,endpoint_url=https://u:planted4@h":          "endpoint_url is an http or https URL without a password",
		"type=s3,bucket=b,endpoint_url=h:9000" + keys:                 "endpoint_url is an http or https URL",
		"type=s3,bucket=b,use_path_style=maybe" + keys:                "use_path_style is true or false",
		"type=s3,bucket=b,mode=all" + keys:                            "mode is min or max",
		"type=s3,bucket=b,name=a;;b" + keys:                           "name is a name",
		"type=s3,bucket=b,upload_parallelism=0" + keys:                "upload_parallelism is a number",
		"type=s3,bucket=b,touch_refresh=1" + keys:                     "touch_refresh is a time",
		"type=azblob,account_url=h,name=n,secret_access_key=planted4": "there are type=registry",
		"type=registry,ref=r/a,registry.insecure=true":                "--cache-to=type=registry,ref=r/a,registry.insecure=true: registry.insecure is not supported",
		"type=local": "--cache-to=type=local: dest= is missing",
	} {
		got := run(t, build.Env{}, &build.Result{}, nil, "hako", "build", "--no-push", "--cache-to="+value)
		if got.called || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: called %t, want %q in\n%s", value, got.called, want, got.stderr)
		}
		if strings.Contains(got.stderr+got.stdout, "planted") {
			t.Errorf("%s: a key is in\n%s", value, got.stderr)
		}
	}
}

// TestHidden: keys among the options are not printed with them.
func TestHidden(t *testing.T) {
	t.Parallel()
	opt := build.Options{Cache: build.CacheOptions{To: []build.CachePlace{{S3: build.S3Place{Bucket: "b", AccessKeyID: "planted", SecretKey: "planted", SessionToken: "planted"}}}}}
	raw, err := json.Marshal(opt.Cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", opt, opt, opt), string(raw), opt.Cache.To[0].S3.String()} {
		if strings.Contains(text, "planted") {
			t.Errorf("a key is in %s", text)
		}
	}
}
