import { fstatSync } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { parseDockerfile } from "../../build/dockerfile.ts";
import { IgnoreRules } from "../../build/ignore.ts";
import { maxDockerfileLength } from "../../build/lex.ts";
import type { PlanOptions } from "../../build/options.ts";
import { cleanPath } from "../../build/paths.ts";
import { missingImages, planBuild } from "../../build/plan.ts";
import type { BuildPlan } from "../../build/step.ts";
import { resolveIn } from "../../build/tree.ts";
import type { BuildRequest } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import { parseNamedContext } from "../../core/named-context.ts";
import { parsePlatform, platformOf } from "../../core/platform.ts";
import { toByteString } from "../../image/layer-entry.ts";
import { writeImage } from "../../image/manifest.ts";
import { Turns } from "../../image/turns.ts";
import { abortable } from "./abortable.ts";
import { Beside } from "./beside.ts";
import { cachedStages } from "./cached-stages.ts";
import { type Context, readContext } from "./context.ts";
import type { ContextTree } from "./context-tree.ts";
import { hostDecompress, isCompressed } from "./decompress-program.ts";
import { type CacheExport, exportCache } from "./export-cache.ts";
import { gitContext } from "./git-context.ts";
import { inlineCache } from "./inline-cache.ts";
import type { BuildIdentity, BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";
import { formedLayers } from "./step-layers.ts";
import { tarContext } from "./tar-context.ts";

/** A context is read in pieces of this many bytes. */
const readSize = 256 << 10;

/** Programs of one build that run at the same time. */
const runsAtOnce = 2;

/** A built image: its blobs are stored, its rows are the caller's. */
export interface BuiltImage {
  image: Image;
  manifest: Record<string, unknown>;
  /** What `cacheTo` came to; null: it was not asked. */
  cache: CacheExport | null;
}

/**
 * Runs a build from its context to the stored image. Steps that were done before are taken from the cache, so
 * that another attempt goes on where the last was cut off.
 * @throws BerthError, with `line` where one is to blame; the signal's reason when it aborts.
 */
export async function runBuild(
  request: BuildRequest,
  build: BuildIdentity,
  means: BuildMeans,
  report: BuildReport,
  signal: AbortSignal,
): Promise<BuiltImage> {
  const { source } = request;
  const digest = await contextDigest(source, means, report, signal);
  const context = await readBlob(digest, means, signal);
  const beside = new Beside();
  try {
    report.line(0, "info", `#0 context: ${context.files} entries, ${context.bytes} bytes`);
    signal.throwIfAborted();
    const { plan, images, tree } = await plannedBuild(request, context, means, signal);
    for (const { check, message, at } of plan.warnings) {
      report.line(0, "info", `#0 warning: ${message} (line ${at.line}, ${check})`);
    }
    if (plan.warnings.length > 0) {
      await means.warned(plan.warnings.map(({ check, message, at }) => ({ check, message, line: at.line })));
    }
    const { epoch } = plan;
    const form = { epoch, compression: request.compression ?? "gzip" };
    const state = {
      means: { ...means, layers: formedLayers(means.layers, form) },
      form,
      build,
      report,
      context: tree,
      images,
      running: new Turns(runsAtOnce),
      beside,
    };
    const built = await cachedStages(plan, state, request, AbortSignal.any([signal, beside.failed]));
    means.sandboxes.holdOff();
    const config = { ...built.config, ...inlineCache(request, built, epoch, report) };
    const [stored] = await Promise.all([store(means, writeImage(config, built.layers)), beside.end(), report.flush()]);
    // It may have taken long.
    signal.throwIfAborted();
    const { cacheTo } = request;
    return {
      ...stored,
      cache: cacheTo === undefined ? null : await exportCache(cacheTo, built, means, report, signal),
    };
  } finally {
    // Its error is told already, or is less than the one that is.
    await beside.settled();
    await context.close();
  }
}

/** The context's tar in the blob store. */
async function contextDigest(
  source: BuildRequest["source"],
  means: BuildMeans,
  report: BuildReport,
  signal: AbortSignal,
): Promise<string> {
  switch (source.kind) {
    case "archive":
      return source.digest;
    case "git":
      return gitContext(source, means, report, signal);
    case "tar":
      return tarContext(source, means, report, signal);
  }
}

/** The context whose tar is in the blob store. A plain one that is here as a file is read where it is, and not copied. */
async function readBlob(digest: string, means: BuildMeans, signal: AbortSignal): Promise<Context> {
  const file = await means.blobs.file(digest);
  if (file !== null) {
    const first = await readPiece(file, 0).catch(async (error: unknown) => {
      await file.close();
      throw error;
    });
    if (!isCompressed(first)) return readContext(abortable(piecesOf(file, first), signal), file);
    await file.close();
  }
  const plain = hostDecompress(means.sandboxes);
  const tar = abortable(plain(await means.blobs.open(digest)), signal);
  return readContext(tar, `${means.scratch}/context`);
}

async function readPiece(file: FileHandle, position: number): Promise<Buffer> {
  const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(readSize), 0, readSize, position);
  return buffer.subarray(0, bytesRead);
}

/** All of a file, of which the first piece was read. A short piece is not its end: a disk that fails gives what it has before. */
async function* piecesOf(file: FileHandle, first: Buffer): AsyncGenerator<Uint8Array, void, undefined> {
  const { size } = fstatSync(file.fd);
  yield first;
  for (let position = first.length; position < size; ) {
    const piece = await readPiece(file, position);
    if (piece.length === 0) throw new RangeError("a blob is cut short");
    position += piece.length;
    yield piece;
  }
}

/** Reads the Dockerfile, fetches the images it needs, and plans. */
async function plannedBuild(
  request: BuildRequest,
  { tree, newest }: Context,
  means: BuildMeans,
  signal: AbortSignal,
): Promise<{ plan: BuildPlan; images: Map<string, Image>; tree: ContextTree }> {
  const path = cleanPath(request.dockerfile);
  const dockerfile = parseDockerfile(await readText(tree, path, "Dockerfile"));
  const buildPlatform = platformOf(process.arch);
  const platform = request.platform === undefined ? buildPlatform : parsePlatform(request.platform, buildPlatform);
  if (platform === null) throw new BerthError("invalid_request", `${JSON.stringify(request.platform)} is no platform.`);
  const { args, labels, target } = request;
  // All files of a commit have its time; those of an upload say little.
  const contextTime = request.source.kind === "git" ? newest : null;
  const contexts = Object.fromEntries(
    Object.entries(request.contexts ?? {}).map(([name, text]) => [name.toLowerCase(), parseNamedContext(text)]),
  );
  const options: PlanOptions = { args, labels, contexts, target, platform, buildPlatform, contextTime };
  const images = new Map<string, Image>();
  const configs = () => new Map([...images].map(([key, image]) => [key, image.config]));
  for (let missing = missingImages(dockerfile, options, configs()); missing.length > 0; ) {
    await Promise.all(
      missing.map(async (needed) => {
        try {
          images.set(needed.key, await means.image(needed, signal));
        } catch (error) {
          if (!(error instanceof BerthError)) throw error;
          const facts = { ...error.facts, line: needed.at.line };
          throw new BerthError(error.code, error.message, { problems: error.problems, facts, cause: error });
        }
      }),
    );
    missing = missingImages(dockerfile, options, configs());
  }
  const plan = planBuild(dockerfile, options, configs());
  const own = await readOptional(tree, `${path}.dockerignore`);
  const rules = IgnoreRules.parse(own ?? (await readOptional(tree, "/.dockerignore")) ?? "");
  return { plan, images, tree: tree.without(rules) };
}

async function readText(tree: ContextTree, path: string, what: string): Promise<string> {
  const text = await readOptional(tree, path);
  if (text !== null) return text;
  throw new BerthError("invalid_context", `The context has no ${what} at ${JSON.stringify(path.slice(1))}.`);
}

/** A file's text up to a little more than a Dockerfile may have, for the lexer to refuse. */
async function readOptional(tree: ContextTree, path: string): Promise<string | null> {
  const { path: found, entry, blocked } = await resolveIn(tree, toByteString(path));
  if (blocked || entry?.type !== "file") return null;
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of tree.read(found, entry)) {
    parts.push(part);
    bytes += part.length;
    if (bytes > maxDockerfileLength) break;
  }
  return Buffer.concat(parts).toString("utf8");
}

async function store(means: BuildMeans, written: ReturnType<typeof writeImage>): Promise<Omit<BuiltImage, "cache">> {
  const { image, manifest, config, configDigest } = written;
  const put = (bytes: Uint8Array, digest: string) => means.blobs.put([bytes], { digest, maxBytes: bytes.length });
  await Promise.all([put(config, configDigest), put(manifest, image.digest)]);
  return { image, manifest: JSON.parse(Buffer.from(manifest).toString()) as Record<string, unknown> };
}
