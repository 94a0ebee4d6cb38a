// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	capspb "github.com/moby/buildkit/util/apicaps/pb"
	"github.com/opencontainers/go-digest"
)

// honoured are the features of graphs that the ops compute.
func honoured() []apicaps.CapID {
	return []apicaps.CapID{
		pb.CapSourceImage, pb.CapSourceImageResolveMode,
		pb.CapSourceLocal, pb.CapSourceLocalUnique, pb.CapSourceLocalSessionID, pb.CapSourceLocalIncludePatterns,
		pb.CapSourceLocalFollowPaths, pb.CapSourceLocalExcludePatterns, pb.CapSourceLocalSharedKeyHint, pb.CapSourceLocalDiffer,
		pb.CapSourceHTTP, pb.CapSourceHTTPChecksum, pb.CapSourceHTTPPerm, pb.CapSourceHTTPUIDGID,
		pb.CapSourceOCILayout,
		pb.CapSourceGit, pb.CapSourceGitKeepDir, pb.CapSourceGitFullURL, pb.CapSourceGitHTTPAuth,
		pb.CapSourceGitKnownSSHHosts, pb.CapSourceGitMountSSHSock, pb.CapSourceGitSubdir, pb.CapSourceGitChecksum,
		pb.CapSourceGitSkipSubmodules, pb.CapSourceGitMTime, pb.CapSourceGitFetchByCommit,
		pb.CapExecMetaBase, pb.CapExecMetaUlimit, pb.CapExecMetaNetwork, pb.CapExecMetaProxy, pb.CapExecMetaSetsDefaultPath,
		pb.CapExecMetaSecurity,
		pb.CapExecMetaRemoveMountStubsRecursive,
		pb.CapExecMountBind, pb.CapExecMountBindReadWriteNoOutput, pb.CapExecMountCache, pb.CapExecMountCacheSharing,
		pb.CapExecMountSelector, pb.CapExecMountTmpfs, pb.CapExecMountTmpfsSize, pb.CapExecMountSecret,
		pb.CapExecMountSSH, pb.CapExecSecretEnv, pb.CapExecValidExitCode,
		pb.CapFileBase, pb.CapFileCopyIncludeExcludePatterns, pb.CapFileCopyRequiredPaths,
		pb.CapFileCopyAlwaysReplaceExistingDestPaths, pb.CapFileCopyModeStringFormat,
		pb.CapConstraints, pb.CapPlatform,
		pb.CapMetaIgnoreCache, pb.CapMetaDescription, pb.CapMetaExportCache,
		pb.CapMergeOp,
		pb.CapAnnotations, pb.CapSourceDateEpoch,
	}
}

// refused are features that the frontend must know of although nothing here
// honours them: without the capability it would leave them out of the graph,
// and the image would be built as if they had not been asked for. With it they
// are in the graph, and [checkCaps] stops the build. The values are what to
// tell.
func refused() map[apicaps.CapID]string {
	const node = "; set it where the container is defined"
	return map[apicaps.CapID]string{
		pb.CapExecMetaCgroupParent:   "a cgroup parent (--cgroup-parent) cannot be set here" + node,
		pb.CapExecMetaLinuxResources: "memory and CPU limits of a RUN cannot be set here" + node,
		pb.CapExecMetaCDI:            "RUN --device is not supported; remove it, or build with BuildKit",
	}
}

// gatewayCaps are the parts of the gateway that [bridge] has. Frontend inputs
// and containers are not among them.
func gatewayCaps() []apicaps.CapID {
	return []apicaps.CapID{
		gwpb.CapSolveBase, gwpb.CapSolveInlineReturn, gwpb.CapResolveImage, gwpb.CapResolveImageResolveMode,
		gwpb.CapReadFile, gwpb.CapReadDir, gwpb.CapStatFile, gwpb.CapReturnResult, gwpb.CapReturnMap,
		gwpb.CapReferenceOutput, gwpb.CapFrontendCaps, gwpb.CapGatewayEvaluateSolve, gwpb.CapGatewayEvaluate,
		gwpb.CapGatewayWarnings, gwpb.CapSourceMetaResolver,
	}
}

// llbCaps are what the frontend is told: what it may put into a graph.
func llbCaps() []apicaps.CapID {
	all := append(honoured(), slices.Collect(maps.Keys(refused()))...)
	slices.Sort(all)
	return all
}

// capSet returns ids as the frontend wants them.
func capSet(list *apicaps.CapList, ids []apicaps.CapID) apicaps.CapSet {
	var on []*capspb.APICap
	for _, id := range ids {
		on = append(on, &capspb.APICap{ID: string(id), Enabled: true})
	}
	return list.CapSet(on)
}

// checkCaps refuses a graph that asks for what nothing here does. Not every
// feature leaves its capability in the graph, so the commands are looked at too.
func checkCaps(def *pb.Definition) error {
	ok := map[string]bool{}
	for _, id := range honoured() {
		ok[string(id)] = true
	}
	why := refused()
	for _, dt := range def.GetDef() {
		dgst := string(digest.FromBytes(dt))
		var op pb.Op
		if err := op.UnmarshalVT(dt); err != nil {
			return fmt.Errorf("decode op: %w", err)
		}
		wanted := def.GetMetadata()[dgst].GetCaps()
		for _, c := range append(slices.Sorted(maps.Keys(wanted)), execCaps(&op, def.GetMetadata()[dgst])...) {
			if ok[c] || c == string(pb.CapExecMetaCDI) && !needsDevice(&op) {
				continue
			}
			err := fmt.Errorf("the build needs %q, which is not supported", c)
			if text := why[apicaps.CapID(c)]; text != "" {
				err = errors.New(text)
			}
			return atVertex(def, dgst, err)
		}
	}
	return nil
}

// needsDevice says whether a command cannot do without a device: no place that
// hako runs in has any, so one that is not required is simply absent, as it is to
// BuildKit where none is registered.
func needsDevice(op *pb.Op) bool {
	return slices.ContainsFunc(op.GetExec().GetCdiDevices(), func(d *pb.CDIDevice) bool { return !d.GetOptional() })
}

// execCaps returns the refused capabilities that a command uses.
func execCaps(op *pb.Op, md *pb.OpMetadata) []string {
	var out []string
	exec := op.GetExec()
	for c, used := range map[apicaps.CapID]bool{
		pb.CapExecMetaCgroupParent:   exec.GetMeta().GetCgroupParent() != "",
		pb.CapExecMetaLinuxResources: md.GetLinuxResources() != nil,
		pb.CapExecMetaCDI:            needsDevice(op),
	} {
		if used {
			out = append(out, string(c))
		}
	}
	slices.Sort(out)
	return out
}

// atVertex adds the place of a vertex to an error; if it has none, as sources
// that belong to an ADD, that of the first vertex that uses it.
func atVertex(def *pb.Definition, dgst string, err error) error {
	src := def.GetSource()
	for _, loc := range src.GetLocations()[dgst].GetLocations() {
		if i := int(loc.GetSourceIndex()); i >= 0 && i < len(src.GetInfos()) {
			info := src.GetInfos()[i]
			return &SourceError{File: info.GetFilename(), Lines: lineRanges(loc.GetRanges()), Text: info.GetData(), Err: err}
		}
	}
	for _, dt := range def.GetDef() {
		var op pb.Op
		if op.UnmarshalVT(dt) != nil || op.Op == nil {
			continue
		}
		if slices.ContainsFunc(op.Inputs, func(in *pb.Input) bool { return in.GetDigest() == dgst }) {
			return atVertex(def, string(digest.FromBytes(dt)), err)
		}
	}
	return err
}
