// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import "sync/atomic"

// A meter counts the bytes that registries send and get.
type meter struct{ received, sent atomic.Int64 }

func (m *meter) down(n int64) { m.received.Add(n) }
func (m *meter) up(n int64)   { m.sent.Add(n) }
