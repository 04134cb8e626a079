import { randomUUID } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { fileKey } from "../../build/keys.ts";
import { BerthError } from "../../core/errors.ts";
import type { BuildPayload } from "../../core/job.ts";
import { formatPlatform } from "../../core/platform.ts";
import { hubReference, parseReference } from "../../core/reference.ts";
import {
  findCachedFile,
  findCachedStep,
  keepCachedFile,
  keepCachedStep,
  recordBuiltImage,
  recordFetched,
  recordWarnings,
  reportBuild,
} from "../../db/build-runs.ts";
import { projectHasLayer } from "../../db/image-records.ts";
import { type BegunBuild, type ClaimedJob, holdsJob } from "../../db/leases.ts";
import { OutboundPolicy } from "../../image/outbound.ts";
import { pullLayer } from "../../image/pull.ts";
import type { RegistryAuth } from "../../image/registry-auth.ts";
import { armFailpoint } from "../../isolation/failpoint.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { BuildMeans } from "../build/ports.ts";
import { BuildReport } from "../build/report.ts";
import { runBuild } from "../build/run-build.ts";
import { Workplace } from "../build/workplace.ts";
import { requireDisk } from "../host-disk.ts";
import { ensureImage } from "../images.ts";
import type { JobHandler } from "../runner.ts";
import type { Services } from "../services.ts";
import { credentials } from "./transfer.ts";

/** Where builds keep what lives as long as they do. */
function buildScratch(dataDir: string): string {
  return `${dataDir}/worker/builds`;
}

/** Removes what the builds of an earlier worker have left. */
export async function clearBuildScratch(dataDir: string, sandboxes: Pick<Sandboxes, "unmountLayer">): Promise<void> {
  const directory = buildScratch(dataDir);
  const left = await readdir(directory, { recursive: true }).catch(() => []);
  // Layers that were made for a step may still be mounted.
  for (const path of left) if (path.endsWith(".erofs")) sandboxes.unmountLayer(path);
  await rm(directory, { recursive: true, force: true });
}

/** What came with the build for its secret mounts, by id. */
async function sealedSecrets(job: ClaimedJob, services: Services): Promise<ReadonlyMap<string, string>> {
  const { secrets } = job.payload as BuildPayload;
  if (secrets === undefined) return new Map();
  return new Map(Object.entries(JSON.parse(await services.openSealed(job, secrets)) as Record<string, string>));
}

/** Users at registries that came with the build, by registry. */
async function sealedRegistryAuth(job: ClaimedJob, services: Services): Promise<ReadonlyMap<string, RegistryAuth>> {
  const { registryAuth } = job.payload as BuildPayload;
  if (registryAuth === undefined) return new Map();
  const opened = JSON.parse(await services.openSealed(job, registryAuth)) as Record<string, RegistryAuth>;
  return new Map(Object.entries(opened));
}

/** What a build's steps are given of the host and the database. */
function meansOf(
  job: ClaimedJob,
  services: Services,
  { id: buildId, request }: BegunBuild,
  { scratch, outbound, http, images, leaving }: Workplace,
  sealed: Pick<BuildMeans, "gitAuth" | "secrets" | "registryAuth">,
): BuildMeans {
  const { connection, config, blobs, layers, registry, sandboxes } = services;
  const { db } = connection;
  const reach = armFailpoint(config.failpoint);
  const held = (holds: boolean): void => {
    if (!holds) throw leaseLost();
  };
  return {
    blobs,
    layers,
    sandboxes,
    cache: {
      find: (key) => findCachedStep(db, job.projectId, key),
      keep: async (key, result) => {
        reach("build.stepped");
        await keepCachedStep(db, job, key, result);
        reach("build.kept");
      },
    },
    files: {
      find: (url) => findCachedFile(db, job.projectId, fileKey(url)),
      keep: (url, file) => keepCachedFile(db, job, fileKey(url), file),
    },
    image: async ({ reference, platform }, signal) => {
      const auth = sealed.registryAuth.get(hubReference(parseReference(reference)).registry);
      const { image } = await ensureImage(services, job.projectId, reference, {
        pull: request.pull ? "always" : "missing",
        platform: formatPlatform(platform),
        ...(auth === undefined ? {} : { auth }),
        signal,
        held: (tx) => holdsJob(tx, job),
      });
      return image;
    },
    withRoot: (paths, use) => images.with(paths, use),
    outbound,
    http,
    ...sealed,
    fetched: async (source) => held(await recordFetched(db, job, buildId, source)),
    warned: async (warnings) => held(await recordWarnings(db, job, buildId, warnings)),
    scratch,
    leaving,
    registry,
    importLayer: (layer, repository, signal) => {
      const mayReuse = () => projectHasLayer(db, job.projectId, layer);
      return pullLayer({ repository, layers, mayReuse, signal }, layer);
    },
  };
}

function leaseLost(): BerthError {
  return new BerthError("unavailable", "The lease is lost.");
}

/** Builds an image from an uploaded context or a git repository and tags it. */
export const build: JobHandler = async (job, services, signal, afterwards) => {
  const { connection, config, sandboxes, log } = services;
  const { db } = connection;
  const reach = armFailpoint(config.failpoint);
  const begun = job.build;
  if (begun === null) throw new BerthError("not_found", "The build is gone.");
  requireDisk(config.dataDir);
  reach("build.begun");
  const { id: buildId, request, nextSeq } = begun;
  const { limits } = request;
  const sealed = {
    gitAuth: await credentials(job, services),
    secrets: await sealedSecrets(job, services),
    registryAuth: await sealedRegistryAuth(job, services),
  };
  const outbound = new OutboundPolicy(config.outboundAllow);
  const workplace = Workplace.open(`${buildScratch(config.dataDir)}/${randomUUID()}`, outbound, log);
  afterwards(() => workplace.close());
  const report = new BuildReport((lines, steps) => reportBuild(db, job, buildId, lines, steps), nextSeq);
  const tooLong = new BerthError("step_timeout", `The build took longer than ${limits.timeoutSeconds} seconds.`);
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(tooLong), limits.timeoutSeconds * 1000);
  try {
    const means = meansOf(job, services, begun, workplace, sealed);
    const identity = { buildId, projectId: job.projectId, limits };
    const ended = AbortSignal.any([signal, timeout.signal]);
    const { image, manifest, cache } = await runBuild(request, identity, means, report, ended);
    const sizeBytes = image.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
    sandboxes.holdOff();
    // A build that is to fail for its log moves no name.
    report.check();
    const [recorded] = await Promise.all([
      recordBuiltImage(db, job, buildId, { ...image, manifest, sizeBytes }, request.tags.map(parseReference)),
      report.flush(),
    ]);
    if (!recorded) throw leaseLost();
    reach("build.recorded");
    return { digest: image.digest, tags: request.tags, ...(cache === null ? {} : { cacheTo: cache }) };
  } catch (error) {
    report.line(0, "info", `#0 ${error instanceof BerthError ? error.message : "Something went wrong inside Berth."}`);
    throw error;
  } finally {
    clearTimeout(timer);
    await report.flush().catch((error: unknown) => log.warn({ err: error }, "a build's log was not written"));
  }
};
