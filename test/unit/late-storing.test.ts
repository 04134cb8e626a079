import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { BuildRequest, StepResult } from "../../src/core/build-request.ts";
import { BerthError } from "../../src/core/errors.ts";
import { emptyRoot } from "../../src/engine/build/empty-root.ts";
import type { BuildMeans } from "../../src/engine/build/ports.ts";
import { BuildReport } from "../../src/engine/build/report.ts";
import { runBuild } from "../../src/engine/build/run-build.ts";
import type { PutExpectation } from "../../src/image/blobs.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { collect, entry } from "../support/image.ts";

// The steps of a build do not wait for the disk; the build does.

let directory: string;
let blobs: FileBlobs;
let kept: Map<string, StepResult>;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "berth-late-storing-test-"));
  blobs = new FileBlobs(join(directory, "blobs"));
  kept = new Map();
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** Builds two COPY steps with a store that calls `late` before it keeps a layer. */
async function build(late: () => Promise<void>, signal = new AbortController().signal) {
  const context = await collect(
    writeTar([
      entry("Dockerfile", { content: "FROM scratch\nCOPY one /one\nCOPY two /two\n" }),
      entry("one", { content: "1" }),
      entry("two", { content: "2" }),
    ]),
  );
  const { digest, sizeBytes } = await blobs.put(Readable.from([context]), { maxBytes: context.length });
  const store = Object.assign(Object.create(blobs) as FileBlobs, {
    size: (wanted: string) => blobs.size(wanted),
    open: (wanted: string) => blobs.open(wanted),
    file: (wanted: string) => blobs.file(wanted),
    put: (source: AsyncIterable<Uint8Array>, expect: PutExpectation) =>
      blobs.put(source, {
        ...expect,
        confirm: async () => {
          await expect.confirm?.();
          // Only layers tell when they are written.
          if (expect.written !== undefined) await late();
        },
      }),
  });
  const request: BuildRequest = {
    source: { kind: "archive", digest, sizeBytes },
    dockerfile: "Dockerfile",
    args: {},
    tags: [],
    labels: {},
    noCache: false,
    pull: false,
    limits: { cpus: 1, memory: 2 ** 28, timeoutSeconds: 60 },
  };
  const report = new BuildReport(() => Promise.resolve(true), 1);
  const means = {
    blobs: store,
    layers: new LayerStore(join(directory, "layers"), store),
    cache: {
      find: (key: string) => Promise.resolve(kept.get(key) ?? null),
      keep: (key: string, result: StepResult) => Promise.resolve(void kept.set(key, result)),
    },
    withRoot: <T>(_: readonly string[], use: (root: typeof emptyRoot) => Promise<T>) => use(emptyRoot),
    sandboxes: { holdOff: () => undefined },
    files: {},
    scratch: directory,
    registryAuth: new Map(),
  } as unknown as BuildMeans;
  const identity = { buildId: "bld_late", projectId: "prj_late", limits: request.limits };
  const ends = () => report.steps.filter(({ status }) => status === "succeeded").length;
  return { ends, built: runBuild(request, identity, means, report, signal) };
}

test("all steps end before the first layer is stored; the image is there, and the steps remembered, after it", async () => {
  const gate = Promise.withResolvers<undefined>();
  const waiting = Promise.withResolvers<undefined>();
  let late = 0;
  const { ends, built } = await build(async () => {
    if (++late === 2) waiting.resolve(undefined);
    await gate.promise;
  });
  await waiting.promise;
  // The image's own documents are stored meanwhile.
  await expect.poll(() => readdirSync(join(directory, "blobs", "sha256")).length).toBe(3);
  expect(ends()).toBe(3);
  expect(kept.size).toBe(0);
  expect(await Promise.race([built, Promise.resolve("not yet")])).toBe("not yet");
  gate.resolve(undefined);
  const { image } = await built;
  expect(image.layers).toHaveLength(2);
  for (const { digest } of image.layers) expect(await blobs.size(digest)).not.toBeNull();
  expect(kept.size).toBe(2);
});

test("a layer that can't be stored fails the build at its own line, which remembers nothing of it", async () => {
  const second = Promise.withResolvers<undefined>();
  let late = 0;
  const { built } = await build(async () => {
    if (++late === 2) second.resolve(undefined);
    else throw await second.promise.then(() => new BerthError("disk_full", "The host's disk is full."));
  });
  await expect(built).rejects.toMatchObject({ code: "disk_full", facts: { line: 2 } });
  // The other layer is stored.
  expect(kept.size).toBe(1);
  expect(readdirSync(join(directory, "blobs", "tmp"))).toEqual([]);
});

test("a build that is cancelled while its layers are stored ends so, and remembers what was stored", async () => {
  const gate = Promise.withResolvers<undefined>();
  const abort = new AbortController();
  const { ends, built } = await build(() => gate.promise.then(() => undefined), abort.signal);
  await expect.poll(ends).toBe(3);
  abort.abort(new BerthError("cancelled", "It was cancelled."));
  gate.resolve(undefined);
  await expect(built).rejects.toMatchObject({ code: "cancelled" });
  expect(kept.size).toBe(2);
});
