import type { PullPayload } from "../../core/job.ts";
import { formatReference, hubReference, parseReference } from "../../core/reference.ts";
import { holdsJob } from "../../db/leases.ts";
import { requireDisk } from "../host-disk.ts";
import { pullAndRecord } from "../images.ts";
import type { JobHandler } from "../runner.ts";
import { credentials, progressReport } from "./transfer.ts";

/** Pulls an image into the project; the result counts what was moved. */
export const pull: JobHandler = async (job, services, signal) => {
  requireDisk(services.config.dataDir);
  const payload = job.payload as unknown as PullPayload;
  const reference = hubReference(parseReference(payload.reference));
  const auth = await credentials(job, services);
  const { image, ...counts } = await pullAndRecord(services, job.projectId, reference, {
    signal,
    held: (tx) => holdsJob(tx, job),
    ...(payload.platform === undefined ? {} : { platform: payload.platform }),
    ...(auth === null ? {} : { auth }),
    onProgress: progressReport(job, services),
  });
  return { reference: formatReference(reference), digest: image.digest, ...counts };
};
