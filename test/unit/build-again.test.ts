import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { BuildRequest, StepResult } from "../../src/core/build-request.ts";
import { BerthError } from "../../src/core/errors.ts";
import { emptyRoot } from "../../src/engine/build/empty-root.ts";
import type { ImportedCaches } from "../../src/engine/build/imported-caches.ts";
import { Leaving } from "../../src/engine/build/leaving.ts";
import type { BuildMeans } from "../../src/engine/build/ports.ts";
import { BuildReport } from "../../src/engine/build/report.ts";
import { runBuild } from "../../src/engine/build/run-build.ts";
import { StepResults } from "../../src/engine/build/step-results.ts";
import { writeBuildCache } from "../../src/image/build-cache.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { collect, entry } from "../support/image.ts";

// What steps leave to go on beside the next ones, where a step comes again.

let directory: string;
let kept: Map<string, StepResult>;
/** Sandboxes that were started, in order, and those that are there. */
let started: string[];
let present: Set<string>;
/** How many are taken. */
let slots: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "berth-build-again-"));
  kept = new Map();
  started = [];
  present = new Set();
  slots = 0;
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** Sandboxes in which each step makes a file, and which go when `removed` resolves. */
function sandboxes(removed: Promise<unknown>): Partial<BuildMeans["sandboxes"]> {
  const upperOf = (id: string) => join(directory, "upper", id);
  return {
    holdOff: () => undefined,
    takeSlot: () => ++slots,
    freeSlot: () => {
      slots--;
    },
    idBaseOf: () => 0,
    onExit: () => () => undefined,
    unmountLayer: () => undefined,
    upperOf,
    start: ({ id, log }) => {
      if (present.has(id)) return Promise.reject(new Error(`${id} has a sandbox already`));
      present.add(id);
      started.push(id);
      writeFileSync(log, "");
      mkdirSync(upperOf(id), { recursive: true });
      const file = join(upperOf(id), id);
      writeFileSync(file, id);
      utimesSync(file, 1, 1);
      return Promise.resolve({ pid: 1, startedAt: new Date(0) });
    },
    probe: () => ({ state: "exited", exitCode: 0 }) as ReturnType<BuildMeans["sandboxes"]["probe"]>,
    remove: async (id) => {
      await removed;
      present.delete(id);
    },
  };
}

/** Builds two RUN steps, or others. `ready`: what storing layers, and taking sandboxes away, waits for. */
async function build(
  ready: Promise<unknown>,
  more: Partial<BuildMeans>,
  cacheFrom: string[],
  onLine: (text: string) => void,
  steps = ['RUN ["one"]', 'RUN ["two"]'],
) {
  const blobs = new FileBlobs(join(directory, "blobs"));
  const lines = ["FROM scratch", ...steps];
  const context = await collect(writeTar([entry("Dockerfile", { content: lines.join("\n") })]));
  const { digest, sizeBytes } = await blobs.put(Readable.from([context]), { maxBytes: context.length });
  const late = Object.assign(Object.create(blobs) as FileBlobs, {
    put: async (...[source, expect]: Parameters<FileBlobs["put"]>) => {
      const confirm = () => ready.then(() => expect.confirm?.());
      return blobs.put(source, { ...expect, confirm });
    },
  });
  const limits = { cpus: 1, memory: 2 ** 28, timeoutSeconds: 60 };
  const request: BuildRequest = {
    source: { kind: "archive", digest, sizeBytes },
    dockerfile: "Dockerfile",
    args: {},
    tags: [],
    labels: {},
    noCache: false,
    pull: false,
    limits,
    cacheFrom,
  };
  const report = new BuildReport((rows) => {
    for (const { text } of rows) onLine(text);
    return Promise.resolve(true);
  }, 1);
  const leaving = new Leaving();
  const means = {
    blobs,
    layers: new LayerStore(join(directory, "layers"), late),
    cache: {
      find: (key: string) => Promise.resolve(kept.get(key) ?? null),
      keep: (key: string, result: StepResult) => Promise.resolve(void kept.set(key, result)),
    },
    sandboxes: sandboxes(ready),
    files: {},
    scratch: directory,
    secrets: new Map(),
    registryAuth: new Map(),
    leaving,
    ...more,
  } as unknown as BuildMeans;
  const identity = { buildId: "bld_again", projectId: "prj_again", limits };
  try {
    return await runBuild(request, identity, means, report, new AbortController().signal);
  } finally {
    await report.flush();
    await leaving.end();
  }
}

test("a build that is done again without a cache waits for what its first try has made, and for its sandboxes' ids", async () => {
  const first = await build(Promise.resolve(), {}, [], () => undefined);
  expect(started).toEqual(["bld_again-2", "bld_again-3"]);
  // The cache knows the second step alone, and can't give its layer.
  const cache = writeBuildCache(new Map([...kept].slice(1)));
  const repository = { document: () => Promise.resolve(cache.config) };
  const manifest = { bytes: cache.manifest, mediaType: mediaTypes.ociManifest };
  const far = {
    registry: { resolve: () => Promise.resolve({ repository, manifest }) } as unknown as BuildMeans["registry"],
    importLayer: () => Promise.reject(new BerthError("image_not_found", "The layer is gone.")),
  };
  rmSync(join(directory, "blobs"), { recursive: true });
  kept.clear();
  started = [];
  const given = Promise.withResolvers<undefined>();
  const again = await build(given.promise, far, ["registry.example/cache:1"], (text) => {
    if (text.includes("is not used any more")) given.resolve(undefined);
  });
  expect(again.image.layers).toEqual(first.image.layers);
  expect(started).toEqual(["bld_again-2", "bld_again-3"]);
  expect(present.size).toBe(0);
  expect(slots).toBe(0);
  for (const { digest } of again.image.layers) {
    expect(existsSync(join(directory, "blobs", "sha256", digest.slice(7)))).toBe(true);
  }
});

test("a build that mounts caches ends when they are free again, for the next one; another does not wait for its sandboxes", async () => {
  for (const mount of ["--mount=type=cache,target=/c ", "--mount=type=tmpfs,target=/c ", ""]) {
    const removed = Promise.withResolvers<undefined>();
    let inUse = 0;
    const open = () => {
      inUse++;
      return Promise.resolve({ path: "/caches/c", close: () => inUse-- });
    };
    const means = { sandboxes: { ...sandboxes(removed.promise), caches: { open } }, leaving: new Leaving() };
    let ended = false;
    const built = build(Promise.resolve(), means as unknown as BuildMeans, [], () => undefined, [
      `RUN ${mount}["one"]`,
    ]);
    const end = built.then(() => {
      ended = true;
    });
    const stored = join(directory, "blobs", "sha256");
    // The context, a layer, and the image's config and manifest: that is all there is to do.
    await expect.poll(() => existsSync(stored) && readdirSync(stored).length).toBe(4);
    if (inUse === 0) await end;
    await new Promise(setImmediate);
    expect([inUse > 0, ended]).toEqual(mount.includes("cache") ? [true, false] : [false, true]);
    removed.resolve(undefined);
    await end;
    expect(inUse).toBe(0);
    await means.leaving.end();
    rmSync(stored, { recursive: true });
    kept.clear();
  }
});

test("a sandbox that can't be taken away fails no build; its slot stays taken", async () => {
  const busy = Promise.reject(new Error("busy"));
  busy.catch(() => undefined);
  for (const mount of ["--mount=type=cache,target=/c ", ""]) {
    const caches = { open: () => Promise.resolve({ path: "/caches/c", close: () => undefined }) };
    const leaving = new Leaving();
    const withRoot = (_: readonly string[], use: (root: typeof emptyRoot) => Promise<unknown>) => use(emptyRoot);
    const means = { sandboxes: { ...sandboxes(busy), caches }, leaving, withRoot } as unknown as BuildMeans;
    const steps = [`RUN ${mount}["one"]`, `RUN ${mount}["two"]`];
    const { image } = await build(Promise.resolve(), means, [], () => undefined, steps);
    expect(image.layers).toHaveLength(2);
    await expect(leaving.end()).rejects.toThrow("busy");
    expect(slots).toBe(2);
    [slots, present] = [0, new Set()];
    kept.clear();
  }
});

test("a result of this build that is found by another key is remembered by that key when it is stored", async () => {
  const layer = { digest: "sha256:1", diffId: "sha256:2", sizeBytes: 1, mediaType: "m" };
  const made = { layer, created: "2026-01-01T00:00:00Z" };
  const remembered: string[] = [];
  const imports = {
    find: () => Promise.resolve(null),
    remember: (key: string) => Promise.resolve(void remembered.push(key)),
  } as unknown as ImportedCaches;
  const own = { find: () => Promise.resolve(null), keep: () => Promise.resolve() };
  const results = new StepResults(own, { size: () => Promise.resolve(null) }, imports, false);
  const stored = Promise.withResolvers<undefined>();
  results.note(["content"], made, { layer, stored: stored.promise });
  expect(await results.find("content")).toEqual(made);
  const keeping = results.keep("elsewhere", { ...made, keys: ["elsewhere", "content"] });
  await new Promise(setImmediate);
  expect(remembered).toEqual([]);
  stored.resolve(undefined);
  await keeping;
  expect(remembered).toEqual(["elsewhere"]);
  const failed = Promise.reject(new BerthError("disk_full", "The host's disk is full."));
  results.note(
    ["lost"],
    { ...made, layer: { ...layer, digest: "sha256:3" } },
    { layer: { ...layer, digest: "sha256:3" }, stored: failed },
  );
  await expect(results.keep("other", { ...made, layer: { ...layer, digest: "sha256:3" } })).rejects.toMatchObject({
    code: "disk_full",
  });
  expect(remembered).toEqual(["elsewhere"]);
});

test("a step that has no place for its log takes no slot", async () => {
  const scratch = join(directory, "file");
  writeFileSync(scratch, "");
  await expect(build(Promise.resolve(), { scratch }, [], () => undefined)).rejects.toMatchObject({ code: "ENOTDIR" });
  expect(slots).toBe(0);
});

test("a disk that gives less of the context than it was asked for is asked for the rest, and its error is told", async () => {
  const blobs = new FileBlobs(join(directory, "blobs"));
  const broken = new Error("EIO");
  let opened = 0;
  const means = (breaks: boolean) => ({
    blobs: {
      put: (...more: Parameters<FileBlobs["put"]>) => blobs.put(...more),
      file: async (digest: string) => {
        const file = await blobs.file(digest);
        if (file === null) return null;
        opened++;
        const [read, close] = [file.read.bind(file), file.close.bind(file)];
        return Object.assign(file, {
          // A Dockerfile's header: the tar seems to be whole without what follows.
          read: (buffer: Buffer, offset: number, length: number, position: number) =>
            breaks && position > 0 ? Promise.reject(broken) : read(buffer, offset, Math.min(length, 512), position),
          close: () => {
            opened--;
            return close();
          },
        });
      },
    } as unknown as BuildMeans["blobs"],
  });
  const { image } = await build(Promise.resolve(), means(false), [], () => undefined);
  expect(image.layers).toHaveLength(2);
  await expect(build(Promise.resolve(), means(true), [], () => undefined)).rejects.toThrow(broken);
  expect(opened).toBe(0);
});
