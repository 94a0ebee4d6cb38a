// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifest compares the images of one platform.
func (c *comparer) manifest(ctx context.Context, a, b *Manifest) error {
	ma, mb := &a.Manifest, &b.Manifest
	c.field("manifest", "", "mediaType", a.Descriptor.MediaType, b.Descriptor.MediaType)
	c.field("manifest", "", "artifactType", ma.ArtifactType, mb.ArtifactType)
	c.field("manifest", "", "subject", subject(ma.Subject), subject(mb.Subject))
	c.annotations("manifest", "annotations", ma.Annotations, mb.Annotations)
	c.annotations("manifest", "descriptor.annotations", a.Descriptor.Annotations, b.Descriptor.Annotations)
	c.field("manifest", "", "config.mediaType", ma.Config.MediaType, mb.Config.MediaType)
	if c.opt.Digests {
		c.blob("manifest", "", a.Descriptor, b.Descriptor)
		c.blob("manifest", "config.", ma.Config, mb.Config)
	}
	if err := c.config(a.Config, b.Config); err != nil {
		return err
	}
	seen := len(c.report)
	if err := c.trees(ctx, a, b); err != nil {
		return err
	}
	if c.opt.IgnoreLayers {
		return nil
	}
	return c.layers(ctx, a, b, c.report[seen:])
}

func subject(d *ocispecs.Descriptor) string {
	if d == nil {
		return None
	}
	return d.Digest.String()
}

func (c *comparer) blob(kind, prefix string, a, b ocispecs.Descriptor) {
	c.field(kind, "", prefix+"digest", a.Digest.String(), b.Digest.String())
	c.field(kind, "", prefix+"size", strconv.FormatInt(a.Size, 10), strconv.FormatInt(b.Size, 10))
}

func (c *comparer) annotations(kind, field string, a, b map[string]string) {
	for _, k := range keys(a, b) {
		va, oka := a[k]
		vb, okb := b[k]
		if oka != okb || va != vb {
			c.add(kind, "", field+"."+k, orNone(va, oka), orNone(vb, okb))
		}
	}
}

func orNone(s string, ok bool) string {
	if !ok {
		return None
	}
	return s
}

// keys returns the keys of both maps, sorted.
func keys[V any](a, b map[string]V) []string {
	all := slices.Concat(slices.Collect(maps.Keys(a)), slices.Collect(maps.Keys(b)))
	slices.Sort(all)
	return slices.Compact(all)
}

// config compares two configs, known fields and unknown ones.
func (c *comparer) config(rawA, rawB []byte) error {
	a, err := parseConfig(rawA)
	if err != nil {
		return err
	}
	b, err := parseConfig(rawB)
	if err != nil {
		return err
	}
	for _, k := range keys(a, b) {
		switch {
		case k == "history", k == "created" && c.opt.IgnoreCreated:
			continue
		case k == "rootfs" && !c.opt.Digests:
			// The diffIDs are digests of tars, which say the same in many ways.
			dropDiffIDs(a[k])
			dropDiffIDs(b[k])
		}
		va, oka := a[k]
		vb, okb := b[k]
		c.value("config", k, va, vb, oka, okb)
	}
	if c.opt.IgnoreHistory {
		return nil
	}
	return c.history(a, b)
}

func dropDiffIDs(v any) {
	if m, ok := v.(map[string]any); ok {
		delete(m, "diff_ids")
	}
}

// parseConfig reads a config with its numbers as they are written. Readers
// disagree about a key that is there twice, so that is an error.
func parseConfig(raw []byte) (map[string]any, error) {
	if err := checkKeys(raw); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return m, nil
}

// checkKeys finds keys that are twice in one object.
func checkKeys(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	type level struct {
		seen  map[string]bool // nil in an array
		value bool            // a key was read, its value comes
	}
	var stack []level
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		if s, ok := t.(string); ok && top >= 0 && stack[top].seen != nil && !stack[top].value {
			if stack[top].seen[s] {
				return fmt.Errorf("the key %q is there twice", s)
			}
			stack[top].seen[s], stack[top].value = true, true
			continue
		}
		if t == json.Delim('}') || t == json.Delim(']') {
			stack = stack[:top]
			continue
		}
		if top >= 0 {
			stack[top].value = false
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{seen: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		}
	}
}

// value compares two JSON values, down to what is no object or array.
func (c *comparer) value(kind, field string, a, b any, oka, okb bool) {
	if oka && okb {
		ma, isA := a.(map[string]any)
		mb, isB := b.(map[string]any)
		if isA && isB {
			for _, k := range keys(ma, mb) {
				va, oka := ma[k]
				vb, okb := mb[k]
				c.value(kind, field+"."+k, va, vb, oka, okb)
			}
			return
		}
		la, isA := a.([]any)
		lb, isB := b.([]any)
		if isA && isB && len(la) == len(lb) {
			for i := range la {
				c.value(kind, field+"["+strconv.Itoa(i)+"]", la[i], lb[i], true, true)
			}
			return
		}
	}
	// In JSON, so that "1" and 1 are two things; a string shows as it is.
	ja, jb := text(a, oka), text(b, okb)
	if ja == jb {
		return
	}
	sa, isA := a.(string)
	sb, isB := b.(string)
	if isA && isB {
		ja, jb = sa, sb
	}
	c.add(kind, "", field, ja, jb)
}

func text(v any, ok bool) string {
	if !ok {
		return None
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v) // cannot be: it came from JSON
	}
	return string(raw)
}

func (c *comparer) history(a, b map[string]any) error {
	ha, err := historyOf(a)
	if err != nil {
		return err
	}
	hb, err := historyOf(b)
	if err != nil {
		return err
	}
	if len(ha) != len(hb) {
		c.add("config", "", "history entries", strconv.Itoa(len(ha)), strconv.Itoa(len(hb)))
	}
	for i := range max(len(ha), len(hb)) {
		kind := "history " + strconv.Itoa(i+1)
		var ea, eb map[string]any
		if i < len(ha) {
			ea = ha[i]
		}
		if i < len(hb) {
			eb = hb[i]
		}
		for _, k := range keys(ea, eb) {
			if k == "created" && c.opt.IgnoreCreated {
				continue
			}
			va, oka := ea[k]
			vb, okb := eb[k]
			c.value(kind, k, va, vb, oka, okb)
		}
	}
	return nil
}

func historyOf(config map[string]any) ([]map[string]any, error) {
	list, ok := config["history"].([]any)
	if !ok && config["history"] != nil {
		return nil, errors.New("read config: history is no list")
	}
	var out []map[string]any
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("read config: history entry %d is no object", i+1)
		}
		out = append(out, m)
	}
	return out, nil
}
