import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { resolveIn } from "../../src/build/tree.ts";
import type { BuildRequest, KnownFile, StepResult } from "../../src/core/build-request.ts";
import { BerthError } from "../../src/core/errors.ts";
import type { Image } from "../../src/core/image.ts";
import { OpenImages } from "../../src/engine/build/image-tree.ts";
import { Leaving } from "../../src/engine/build/leaving.ts";
import { BuildReport } from "../../src/engine/build/report.ts";
import { runBuild } from "../../src/engine/build/run-build.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { HttpClient } from "../../src/image/http.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { Registry } from "../../src/image/registry.ts";
import { Sandboxes } from "../../src/isolation/sandbox.ts";
import { createLog } from "../../src/log.ts";
import { RootView } from "./root-view.ts";

// A worker with nothing but builds, driven by JSON lines (test/support/builds.ts). What it built is its registry.

export interface BuildOrder {
  /** The context's tar, base64. */
  tar: string;
  request: Partial<BuildRequest>;
  /** The image is kept under this name for later FROMs. */
  tag: string;
  /** For secret mounts, by id. */
  secrets?: Record<string, string>;
  /** Whose build it is. */
  project?: string;
  /** Networks that git sources may be in. */
  outboundAllow?: string[];
  /** Cancel when a log line has this text. */
  cancelAt?: string;
  /** Paths of the image to take for the host's own, as a worker without containment would: read them, or run them. */
  carelessly?: { read?: string[]; run?: string[] };
}

export interface BuildAnswer {
  error: { code: string; message: string; facts: Record<string, string | number> } | null;
  image: Image | null;
  /** What the git source was found to be. */
  fetched: BuildRequest["source"] | null;
  /** Names of the checks that the Dockerfile failed. */
  warnings: string[];
  steps: { instruction: string; status: string; cached: boolean }[];
  log: string[];
  /** Every entry of the image's root: path → `mode uid:gid` and, for links, the target. */
  files: Record<string, string>;
  /** What was read carelessly, in order. */
  strayed: string[];
  milliseconds: number;
}

const [, , dataDir = "", runDir = "", instance = ""] = process.argv;
const sandboxes = await Sandboxes.open({ instance, runDir, dataDir, runtime: null }, createLog("worker", "warn"));
await sandboxes.sweep([]);
const blobs = new FileBlobs(`${dataDir}/blobs`);
const layers = new LayerStore(`${dataDir}/worker/layers`, blobs);
const images = new Map<string, Image>();
const cache = new Map<string, StepResult>();
const downloads = new Map<string, KnownFile>();

async function build(order: BuildOrder): Promise<BuildAnswer> {
  const upload = Buffer.from(order.tar, "base64");
  const { digest, sizeBytes } = await blobs.put(
    (async function* () {
      yield await Promise.resolve(upload);
    })(),
    { maxBytes: upload.length },
  );
  const request: BuildRequest = {
    source: { kind: "archive", digest, sizeBytes },
    dockerfile: "Dockerfile",
    args: {},
    tags: [],
    labels: {},
    noCache: false,
    pull: false,
    limits: { cpus: 1, memory: 256 * 2 ** 20, timeoutSeconds: 60 },
    ...order.request,
  };
  const cancel = new AbortController();
  const log: string[] = [];
  const report = new BuildReport((lines) => {
    for (const { text, stream } of lines) {
      log.push(stream === "info" ? text : `${stream}: ${text}`);
      if (order.cancelAt !== undefined && stream !== "info" && text.includes(order.cancelAt)) {
        cancel.abort(new BerthError("cancelled", "It was cancelled."));
      }
    }
    return Promise.resolve(true);
  }, 1);
  const outbound = new OutboundPolicy(order.outboundAllow ?? []);
  const leaving = new Leaving();
  const opened = new OpenImages();
  const started = performance.now();
  let image: Image | null = null;
  let fetched: BuildRequest["source"] | null = null;
  let warnings: string[] = [];
  let error: BuildAnswer["error"] = null;
  try {
    const built = await runBuild(
      request,
      { buildId: `bld_${order.tag}`, projectId: order.project ?? "prj_test", limits: request.limits },
      {
        blobs,
        layers,
        sandboxes,
        cache: {
          find: (key) => Promise.resolve(cache.get(key) ?? null),
          keep: (key, result) => {
            cache.set(key, result);
            return Promise.resolve();
          },
        },
        image: ({ reference }) => {
          const found = images.get(reference);
          if (found === undefined) throw new BerthError("image_not_found", `There is no ${reference}.`);
          return Promise.resolve(found);
        },
        withRoot: (paths, use) => opened.with(paths, use),
        gitAuth: null,
        secrets: new Map(Object.entries(order.secrets ?? {})),
        outbound,
        http: new HttpClient(outbound, 5_000),
        warned: (found) => {
          warnings = found.map(({ check }) => check);
          return Promise.resolve();
        },
        fetched: (source) => {
          fetched = source;
          return Promise.resolve();
        },
        scratch: `${dataDir}/worker/builds`,
        leaving,
        files: {
          find: (url) => Promise.resolve(downloads.get(url) ?? null),
          keep: (url, file) => {
            downloads.set(url, file);
            return Promise.resolve();
          },
        },
        registry: new Registry({ mirrors: new Map(), insecure: new Set(), allow: [] }),
        registryAuth: new Map(),
        importLayer: () => Promise.reject(new Error("there are no caches")),
      },
      report,
      cancel.signal,
    );
    image = built.image;
    images.set(order.tag, image);
  } catch (thrown) {
    if (!(thrown instanceof BerthError)) throw thrown;
    error = { code: thrown.code, message: thrown.message, facts: thrown.facts };
  }
  await leaving.end();
  await opened.close();
  const milliseconds = performance.now() - started;
  await report.flush();
  const steps = report.steps.map(({ instruction, status, cached }) => ({ instruction, status, cached }));
  const files = image === null ? {} : await listFiles(image);
  const strayed = image === null ? [] : await stray(image, order.carelessly ?? {});
  return { error, image, fetched, warnings, steps, log, files, strayed, milliseconds };
}

/** Follows paths wherever the kernel leads, out of the image's root as well: shows that a trap is one. */
async function stray(image: Image, { read = [], run = [] }: NonNullable<BuildOrder["carelessly"]>): Promise<string[]> {
  const paths = await Promise.all(image.layers.map((layer) => layers.ensure(layer)));
  return sandboxes.withView(paths, (root) => {
    for (const path of run) execFileSync(`${root}${path}`);
    return Promise.resolve(read.map((path) => readFileSync(`${root}${path}`, "utf8")));
  });
}

async function listFiles(image: Image): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  const paths = await Promise.all(image.layers.map((layer) => layers.ensure(layer)));
  const visit = async (root: RootView, path: string): Promise<void> => {
    const { entry } = await resolveIn(root, path, false);
    if (entry === null) return;
    const link = entry.type === "symlink" ? ` -> ${entry.target}` : "";
    const caps = entry.xattrs.has("security.capability") ? " capability" : "";
    files[path] = `${entry.mode.toString(8)} ${String(entry.uid)}:${String(entry.gid)}${link}${caps}`;
    if (entry.type !== "directory") return;
    for (const name of await root.list(path)) await visit(root, path === "/" ? `/${name}` : `${path}/${name}`);
  };
  // As the kernel shows it.
  if (paths.length > 0) await sandboxes.withView(paths, (root) => visit(new RootView(root), "/"));
  return files;
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await build(JSON.parse(line) as BuildOrder))}\n`);
}
await sandboxes.close();
