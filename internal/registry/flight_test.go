// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestGroupOutlivesItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group[int]
		release := make(chan struct{})
		runs := 0
		fn := func(ctx context.Context) (int, error) {
			runs++
			select {
			case <-release:
				return 7, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		first, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 1)
		go func() {
			_, err := g.do(first, "k", fn)
			errs <- err
		}()
		synctest.Wait()
		got := make(chan int, 1)
		go func() {
			v, err := g.do(t.Context(), "k", fn)
			if err != nil {
				t.Error(err)
			}
			got <- v
		}()
		synctest.Wait()
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("first caller: %v", err)
		}
		close(release)
		if v := <-got; v != 7 || runs != 1 {
			t.Errorf("second caller: %d after %d runs", v, runs)
		}
		if v, err := g.do(t.Context(), "k", fn); v != 7 || err != nil || runs != 1 {
			t.Errorf("not remembered: %d, %v, %d runs", v, err, runs)
		}
	})
}

func TestGroupEndsWithItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group[int]
		ctx, cancel := context.WithCancel(t.Context())
		ended := false
		go func() {
			synctest.Wait()
			cancel()
		}()
		_, err := g.do(ctx, "k", func(ctx context.Context) (int, error) {
			<-ctx.Done()
			ended = true
			return 0, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || !ended {
			t.Errorf("err = %v, ended %t", err, ended)
		}
		// Failure is not remembered.
		if v, err := g.do(t.Context(), "k", func(context.Context) (int, error) { return 1, nil }); v != 1 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
	})
}
