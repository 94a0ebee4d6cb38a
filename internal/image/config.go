// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// addedComment is what BuildKit's exporter writes into the history entries that
// it has to add, so that images are the same.
const addedComment = "buildkit.exporter.image.v0"

// LayerInfo is what a config says of one layer.
type LayerInfo struct {
	DiffID DiffID
	// Created is the layer's time, for history entries that have none.
	Created *time.Time
	// Description says what made the layer, if the history does not.
	Description string
}

// FinishOptions say how a config is finished.
type FinishOptions struct {
	// Base is the config of the base image, nil if there is none: its history
	// keeps its times whatever Epoch is.
	Base []byte
	// Epoch is the latest time in the config; nil leaves times alone.
	Epoch *time.Time
	// Single says that the layers on those of the base image were made one: the
	// last instruction that made one stands for all.
	Single bool
}

// Finish completes the config that the frontend made with what is only known
// when the layers are, bottom first: it rewrites rootfs and history, and sets
// the creation time. Everything else is kept, known or not. The bytes are those
// that BuildKit's exporter makes (exporter/containerimage/writer.go).
func Finish(config []byte, layers []LayerInfo, opt FinishOptions) ([]byte, error) {
	out, err := finish(config, layers, opt)
	if err != nil {
		return nil, fmt.Errorf("finish image config: %w", err)
	}
	return out, nil
}

func finish(config []byte, layers []LayerInfo, opt FinishOptions) ([]byte, error) {
	var img ocispecs.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	switch {
	case fields == nil:
		return nil, errors.New("it is null")
	case img.OS == "":
		return nil, errors.New("it has no os")
	case img.Architecture == "":
		return nil, errors.New("it has no architecture")
	}
	var base ocispecs.Image
	if len(opt.Base) > 0 {
		if err := json.Unmarshal(opt.Base, &base); err != nil {
			return nil, fmt.Errorf("base image config: %w", err)
		}
	}
	if opt.Single {
		singleHistory(img.History, len(base.RootFS.DiffIDs))
	}
	history := matchHistory(img.History, layers)
	fillTimes(history, layers)
	if opt.Epoch != nil {
		clampHistory(history, base.History, *opt.Epoch)
	}
	created, err := creation(fields["created"], history, opt.Epoch)
	if err != nil {
		return nil, err
	}
	rootFS := ocispecs.RootFS{Type: "layers"}
	for _, l := range layers {
		rootFS.DiffIDs = append(rootFS.DiffIDs, digest.Digest(l.DiffID))
	}
	for name, value := range map[string]any{"rootfs": rootFS, "history": history, "created": created} {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	// Go writes the keys of a map sorted, which is what BuildKit relies on too.
	return json.Marshal(fields)
}

// singleHistory makes all entries but the last speak of no layer, of those that
// speak of one on the base's.
func singleHistory(history []ocispecs.History, base int) {
	last := -1
	for i := range history {
		switch {
		case history[i].EmptyLayer:
		case base > 0:
			base--
		default:
			if last >= 0 {
				history[last].EmptyLayer = true
			}
			last = i
		}
	}
}

// matchHistory makes as many entries speak of a layer as there are layers.
func matchHistory(history []ocispecs.History, layers []LayerInfo) []ocispecs.History {
	n := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if n == len(layers) {
			history[i].EmptyLayer = true
			continue
		}
		n++
	}
	for _, l := range layers[n:] {
		history = append(history, ocispecs.History{Created: l.Created, CreatedBy: l.Description, Comment: addedComment})
	}
	return history
}

// fillTimes gives a time to all entries: a layer's own, and entries without a
// layer that of the layer before them, or, at the start, of the first new one.
func fillTimes(history []ocispecs.History, layers []LayerInfo) {
	n := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if history[i].Created == nil {
			history[i].Created = layers[n].Created
		}
		n++
	}
	// The first time after a gap; if there is none, the last one of all. An
	// entry after a base image is thus not as old as the base.
	var last *time.Time
	gap := false
	for i := range history {
		if history[i].Created == nil {
			gap = true
			continue
		}
		last = history[i].Created
		if gap {
			break
		}
	}
	gap = false
	for i := range history {
		if history[i].Created == nil {
			gap = true
			history[i].Created = last
		} else if gap {
			last = history[i].Created
		}
	}
}

// clampHistory limits the times of all entries but those that came with the
// base image: they are the same in every build on it.
func clampHistory(history, base []ocispecs.History, epoch time.Time) {
	ours := false
	for i := range history {
		if !ours && i < len(base) && reflect.DeepEqual(history[i], base[i]) {
			continue
		}
		ours = true
		if history[i].Created == nil || history[i].Created.After(epoch) {
			history[i].Created = &epoch
		}
	}
}

// creation returns the value for the config's creation time: what it has, not
// later than epoch, or else the time of the last entry that has one.
func creation(old json.RawMessage, history []ocispecs.History, epoch *time.Time) (any, error) {
	if old == nil {
		var last *time.Time
		for _, h := range history {
			if h.Created != nil {
				last = h.Created
			}
		}
		return last, nil
	}
	if epoch == nil {
		return old, nil
	}
	var t time.Time
	if err := json.Unmarshal(old, &t); err != nil {
		return nil, fmt.Errorf("created: %w", err)
	}
	if t.After(*epoch) {
		return epoch, nil
	}
	return old, nil
}
