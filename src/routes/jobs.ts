import { z } from "@hono/zod-openapi";
import { type JobStatus, jobKinds, jobStatuses } from "../core/job.ts";
import { appendEvent } from "../db/events.ts";
import { cancelJob, findJob, type JobRow, listJobs } from "../db/jobs.ts";
import { type Tx, together, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { json, operation } from "./operation.ts";
import { idParam, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Jobs";
const params = idParam("job");

/** An error in a resource: of a job, a build. */
export const ShownError = z
  .object({
    code: z.string().openapi({ example: "step_failed" }),
    message: z.string(),
    line: z.int().optional(),
    column: z.int().optional(),
    instruction: z.string().optional(),
    exitCode: z.int().optional(),
  })
  .openapi("ShownError");

export const Job = z
  .object({
    id: z.string().openapi({ example: "job_0q3xr5kkp8wmz2v9d1hc" }),
    kind: z.enum(jobKinds),
    subjectId: z.string().nullable().openapi({ description: "What it is about, such as a build's id." }),
    status: z.enum(jobStatuses),
    attempt: z.int(),
    cancelRequested: z.boolean(),
    progress: z.record(z.string(), z.unknown()).nullable(),
    result: z
      .record(z.string(), z.unknown())
      .nullable()
      .openapi({ example: { layersTransferred: 2, layersSkipped: 1, bytesTransferred: 30412345 } }),
    error: ShownError.nullable(),
    createdAt: z.iso.datetime(),
    startedAt: z.iso.datetime().nullable(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .openapi("Job");

const list = operation({
  method: "get",
  path: "/v1/jobs",
  operationId: "listJobs",
  tag,
  summary: "List jobs, newest first",
  request: {
    query: z.strictObject({ ...pageQuery, kind: z.enum(jobKinds).optional(), status: z.enum(jobStatuses).optional() }),
  },
  responses: { 200: json(listSchema("JobList", Job), "A page of jobs") },
});

const get = operation({
  method: "get",
  path: "/v1/jobs/{id}",
  operationId: "getJob",
  tag,
  summary: "Get a job, or wait for its end",
  request: { params, headers: preferHeader },
  responses: { 200: json(Job, "The job") },
  errors: ["not_found"],
});

const cancel = operation({
  method: "post",
  path: "/v1/jobs/{id}/cancel",
  operationId: "cancelJob",
  tag,
  summary: "Cancel a job",
  description: "What it has under way is ended and its leftovers are removed. One that has ended stays as it is.",
  request: { params, headers: preferHeader.extend(idempotencyHeader.shape) },
  responses: { 200: json(Job, "It has ended"), 202: json(Job, "It is being cancelled") },
  errors: ["not_found", "idempotency_key_reused"],
});

export const jobView = (row: JobRow): z.infer<typeof Job> => row;

/** Whether a job or build has ended. */
export const hasEnded = (row: { status: JobStatus } | null) =>
  row === null || row.status === "succeeded" || row.status === "failed" || row.status === "cancelled";

/** Asks for the end of a job, with its event and wake-ups. @throws BerthError `not_found` */
export async function requestCancel(tx: Tx, projectId: string, jobId: string, subjectId: string): Promise<void> {
  const job = await cancelJob(tx, projectId, jobId);
  if (job === null) throw notFound("job");
  await together([
    appendEvent(tx, { projectId, type: "job.cancel_requested", subjectId: jobId, data: { status: job.status } }),
    ...(job.ended ? [appendEvent(tx, { projectId, type: `${job.kind}.cancelled`, subjectId })] : []),
    wake(tx, job.ended ? topics.jobs : topics.cancels, topics.resource(jobId), topics.resource(subjectId)),
  ]);
}

export function addJobs(app: App, services: Services): void {
  const { sql } = services;
  const read = (c: Request, id: string) => () => findJob(sql, c.var.scope, id);

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const page = pageOf(query);
    const rows = await listJobs(sql, c.var.scope, { kind: query.kind, status: query.status }, page);
    return c.json(
      listOf(page, rows, (row) => row.id, jobView),
      200,
    );
  });

  app.openapi(get, async (c) => {
    const { id } = c.req.valid("param");
    const row = await settle(services, c, id, read(c, id), hasEnded);
    if (row === null) throw notFound("job");
    return c.json(jobView(row), 200);
  });

  app.openapi(cancel, async (c) => {
    const { id } = c.req.valid("param");
    const { projectId } = c.var.scope;
    await once(services, c, async (tx) => {
      const job = await findJob(tx, c.var.scope, id);
      if (job === null) throw notFound("job");
      if (!hasEnded(job)) await requestCancel(tx, projectId, id, job.subjectId ?? id);
      return { id };
    });
    const row = await settle(services, c, id, read(c, id), hasEnded);
    if (row === null) throw notFound("job");
    return c.json(jobView(row), hasEnded(row) ? 200 : 202);
  });
}
