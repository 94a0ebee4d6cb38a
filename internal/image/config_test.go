// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/image"
)

const (
	id1 = image.DiffID("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	id2 = image.DiffID("sha256:2222222222222222222222222222222222222222222222222222222222222222")
)

func at(sec int64) *time.Time {
	t := time.Unix(sec, 0).UTC()
	return &t
}

const roots = `"rootfs":{"type":"layers","diff_ids":["` + string(id1) + `","` + string(id2) + `"]}`

func TestFinish(t *testing.T) {
	t.Parallel()
	two := []image.LayerInfo{{DiffID: id1, Created: at(10), Description: "one"}, {DiffID: id2, Created: at(20), Description: "two"}}
	const base = `{"architecture":"amd64","os":"linux","history":[{"created":"1970-01-01T00:01:40Z","created_by":"base"}]}`
	tests := []struct {
		name, config string
		layers       []image.LayerInfo
		opt          image.FinishOptions
		want         string
	}{
		{
			name:   "missing entries are appended",
			config: `{"os":"linux","architecture":"amd64"}`,
			layers: two,
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:20Z","history":[` +
				`{"created":"1970-01-01T00:00:10Z","created_by":"one","comment":"buildkit.exporter.image.v0"},` +
				`{"created":"1970-01-01T00:00:20Z","created_by":"two","comment":"buildkit.exporter.image.v0"}],"os":"linux",` + roots + `}`,
		},
		{
			name:   "surplus entries become empty",
			config: `{"os":"linux","architecture":"amd64","history":[{"created_by":"a"},{"created_by":"b"}]}`,
			layers: two[:1],
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:10Z","history":[` +
				`{"created":"1970-01-01T00:00:10Z","created_by":"a"},` +
				`{"created":"1970-01-01T00:00:10Z","created_by":"b","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["` + string(id1) + `"]}}`,
		},
		{
			name: "the last entry speaks of the only new layer",
			config: `{"os":"linux","architecture":"amd64","history":[{"created_by":"base"},{"created_by":"a"},{"created_by":"b"},` +
				`{"created_by":"ENV","empty_layer":true}]}`,
			layers: two, opt: image.FinishOptions{Single: true, Base: []byte(`{"rootfs":{"type":"layers","diff_ids":["` + string(id1) + `"]}}`)},
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:20Z","history":[{"created":"1970-01-01T00:00:10Z","created_by":"base"},` +
				`{"created":"1970-01-01T00:00:20Z","created_by":"a","empty_layer":true},{"created":"1970-01-01T00:00:20Z","created_by":"b"},` +
				`{"created":"1970-01-01T00:00:20Z","created_by":"ENV","empty_layer":true}],"os":"linux",` + roots + `}`,
		},
		{
			name: "empty entries take the first new layer's time, then the one before",
			config: `{"os":"linux","architecture":"amd64","history":[{"created":"1970-01-01T00:00:05Z","created_by":"base"},` +
				`{"created_by":"ENV","empty_layer":true},{"created_by":"RUN"},{"created_by":"CMD","empty_layer":true}]}`,
			layers: two,
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:20Z","history":[{"created":"1970-01-01T00:00:05Z","created_by":"base"},` +
				`{"created":"1970-01-01T00:00:20Z","created_by":"ENV","empty_layer":true},{"created":"1970-01-01T00:00:20Z","created_by":"RUN"},` +
				`{"created":"1970-01-01T00:00:20Z","created_by":"CMD","empty_layer":true}],"os":"linux",` + roots + `}`,
		},
		{
			name: "only metadata on a base",
			config: `{"os":"linux","architecture":"amd64","history":[{"created":"1970-01-01T00:00:05Z","created_by":"a"},` +
				`{"created":"1970-01-01T00:00:06Z","created_by":"b"},{"created_by":"CMD","empty_layer":true}]}`,
			layers: two,
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:06Z","history":[{"created":"1970-01-01T00:00:05Z","created_by":"a"},` +
				`{"created":"1970-01-01T00:00:06Z","created_by":"b"},{"created":"1970-01-01T00:00:06Z","created_by":"CMD","empty_layer":true}],"os":"linux",` + roots + `}`,
		},
		{
			name: "epoch clamps all but the base's history",
			config: `{"os":"linux","architecture":"amd64","created":"1970-01-01T01:00:00Z","history":[` +
				`{"created":"1970-01-01T00:01:40Z","created_by":"base"},{"created_by":"RUN"}]}`,
			layers: two,
			opt:    image.FinishOptions{Base: []byte(base), Epoch: at(15)},
			want: `{"architecture":"amd64","created":"1970-01-01T00:00:15Z","history":[{"created":"1970-01-01T00:01:40Z","created_by":"base"},` +
				`{"created":"1970-01-01T00:00:15Z","created_by":"RUN"}],"os":"linux",` + roots + `}`,
		},
		{
			name:   "epoch does not raise times",
			config: `{"os":"linux","architecture":"amd64","created":"1970-01-01T00:00:01Z","history":[{"created":"1970-01-01T00:00:02Z"},{"created":"1970-01-01T00:00:03Z"}]}`,
			layers: two,
			opt:    image.FinishOptions{Epoch: at(15)},
			want:   `{"architecture":"amd64","created":"1970-01-01T00:00:01Z","history":[{"created":"1970-01-01T00:00:02Z"},{"created":"1970-01-01T00:00:03Z"}],"os":"linux",` + roots + `}`,
		},
		{
			name:   "unknown keys are kept, and no layer is a null list",
			config: `{"os":"linux","architecture":"arm64","variant":"v8","config":{"ArgsEscaped":true,"Cmd":["a&b"],"X":1.50},"zeta":[1, 2]}`,
			want:   `{"architecture":"arm64","config":{"ArgsEscaped":true,"Cmd":["a\u0026b"],"X":1.50},"created":null,"history":null,"os":"linux","rootfs":{"type":"layers","diff_ids":null},"variant":"v8","zeta":[1,2]}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := image.Finish([]byte(tt.config), tt.layers, tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, string(got)); d != "" {
				t.Errorf("config differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestFinishErrors(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`null`:                   "null",
		`{"os":"linux"}`:         "no architecture",
		`{"architecture":"arm"}`: "no os",
		`[]`:                     "cannot unmarshal",
		`{"os":"linux","architecture":"arm","created":"x"}`: "parsing time",
	} {
		_, err := image.Finish([]byte(config), nil, image.FinishOptions{Epoch: at(1)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Finish(%s) = %v, want an error with %q", config, err, want)
		}
	}
}
