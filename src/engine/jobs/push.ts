import { BerthError } from "../../core/errors.ts";
import type { PushPayload } from "../../core/job.ts";
import { parsePushDestination } from "../../core/reference.ts";
import { imageByDigest } from "../../db/image-records.ts";
import { layerSources } from "../../db/layer-sources.ts";
import { pushImage } from "../../image/push.ts";
import type { JobHandler } from "../runner.ts";
import { credentials, progressReport } from "./transfer.ts";

/** Publishes an image of the project to a registry; the result counts what was moved. */
export const push: JobHandler = async (job, services, signal) => {
  const { reference, digest, destination: text } = job.payload as unknown as PushPayload;
  const { connection, registry, blobs } = services;
  const image = await imageByDigest(connection.db, job.projectId, digest);
  if (image === null) throw new BerthError("image_not_found", `The project has no image ${reference} any more.`);
  const destination = parsePushDestination(text);
  const counts = await pushImage({
    image,
    destination,
    auth: await credentials(job, services),
    registry,
    blobs,
    signal,
    sources: await layerSources(connection.db, job.projectId, image, destination),
    onProgress: progressReport(job, services),
  });
  return { reference, destination: text, digest, ...counts };
};
