import type { BuildRequest, BuildStepView, BuildWarningView, StepResult } from "../core/build-request.ts";
import type { ContainerSpec } from "../core/container.ts";
import { containerStatuses } from "../core/container.ts";
import { type DeployTemplate, deploymentStatuses } from "../core/deploy.ts";
import { healthStates } from "../core/health.ts";
import type { ImageConfig, Layer } from "../core/image.ts";
import { jobKinds, jobStatuses, type ShownError } from "../core/job.ts";
import { roles } from "../core/roles.ts";
import { type SourceBuild, sourceProviders } from "../core/source.ts";
import { pg, sql } from "./drizzle.ts";

// The tables as migrations/ makes them, with their types (a test compares the two). Meaning and rules stand there.

const bytea = pg.customType<{ data: Buffer }>({ dataType: () => "bytea" });
const inet = pg.customType<{ data: string }>({ dataType: () => "inet" });
const xid8 = pg.customType<{ data: string }>({ dataType: () => "xid8" });
const time = (name: string) => pg.timestamp(name, { withTimezone: true });
const size = (name: string) => pg.bigint(name, { mode: "number" });
const createdAt = () => time("created_at").notNull().defaultNow();
const projectId = () => pg.text("project_id").notNull();

export const projects = pg.pgTable("projects", {
  id: pg.text("id").primaryKey(),
  name: pg.text("name").notNull().unique(),
  maxContainers: pg.integer("max_containers").notNull().default(100),
  maxCpus: pg.doublePrecision("max_cpus").notNull().default(1000),
  maxMemory: size("max_memory").notNull().default(1099511627776),
  maxDisk: size("max_disk").notNull().default(10995116277760),
  maxPorts: pg.integer("max_ports").notNull().default(200),
  maxRunningBuilds: pg.integer("max_running_builds").notNull().default(2),
  createdAt: createdAt(),
});

export const tokens = pg.pgTable("tokens", {
  id: pg.text("id").primaryKey(),
  projectId: pg.text("project_id"),
  role: pg.text("role", { enum: roles }).notNull(),
  name: pg.text("name").notNull().default(""),
  hash: bytea("hash").notNull().unique(),
  createdAt: createdAt(),
  revokedAt: time("revoked_at"),
});

export const hosts = pg.pgTable("hosts", {
  id: pg.text("id").primaryKey(),
  name: pg.text("name").notNull().unique(),
  address: pg.text("address").notNull(),
  agentUrl: pg.text("agent_url").notNull(),
  bootId: pg.text("boot_id").notNull().default(""),
  session: size("session").notNull().default(0),
  state: pg
    .text("state", { enum: ["ready", "draining"] })
    .notNull()
    .default("ready"),
  cpus: pg.doublePrecision("cpus").notNull(),
  memory: size("memory").notNull(),
  disk: size("disk").notNull(),
  portFirst: pg.integer("port_first").notNull(),
  portLast: pg.integer("port_last").notNull(),
  reservedPorts: pg.integer("reserved_ports").array().notNull().default(sql`'{}'`),
  heartbeatAt: time("heartbeat_at").notNull().defaultNow(),
  createdAt: createdAt(),
  labels: pg.jsonb("labels").$type<Record<string, string>>().notNull().default({}),
  joinTokenId: pg.text("join_token_id"),
  diskFree: size("disk_free"),
  diskReserve: size("disk_reserve").notNull().default(0),
});

export const joinTokens = pg.pgTable("join_tokens", {
  id: pg.text("id").primaryKey(),
  usesLeft: pg.integer("uses_left").notNull(),
  expiresAt: time("expires_at").notNull(),
  createdAt: createdAt(),
  revokedAt: time("revoked_at"),
});

export const images = pg.pgTable(
  "images",
  {
    projectId: projectId(),
    digest: pg.text("digest").notNull(),
    mediaType: pg.text("media_type").notNull(),
    manifest: pg.jsonb("manifest").$type<Record<string, unknown>>().notNull(),
    config: pg.jsonb("config").$type<ImageConfig>().notNull(),
    layers: pg.jsonb("layers").$type<Layer[]>().notNull(),
    sizeBytes: size("size_bytes").notNull(),
    createdAt: createdAt(),
  },
  (t) => [pg.primaryKey({ columns: [t.projectId, t.digest] })],
);

export const tags = pg.pgTable(
  "tags",
  {
    projectId: projectId(),
    repository: pg.text("repository").notNull(),
    tag: pg.text("tag").notNull(),
    digest: pg.text("digest").notNull(),
    updatedAt: time("updated_at").notNull().defaultNow(),
  },
  (t) => [pg.primaryKey({ columns: [t.projectId, t.repository, t.tag] })],
);

export const jobs = pg.pgTable("jobs", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  kind: pg.text("kind", { enum: jobKinds }).notNull(),
  subjectId: pg.text("subject_id"),
  payload: pg.jsonb("payload").$type<Record<string, unknown>>().notNull(),
  status: pg.text("status", { enum: jobStatuses }).notNull().default("queued"),
  attempt: pg.integer("attempt").notNull().default(0),
  maxAttempts: pg.integer("max_attempts").notNull().default(3),
  runAt: time("run_at").notNull().defaultNow(),
  hostId: pg.text("host_id"),
  epoch: size("epoch").notNull().default(0),
  leaseUntil: time("lease_until"),
  cancelRequested: pg.boolean("cancel_requested").notNull().default(false),
  progress: pg.jsonb("progress").$type<Record<string, unknown>>(),
  result: pg.jsonb("result").$type<Record<string, unknown>>(),
  error: pg.jsonb("error").$type<ShownError>(),
  createdAt: createdAt(),
  startedAt: time("started_at"),
  finishedAt: time("finished_at"),
  afterJobId: pg.text("after_job_id"),
  lost: pg.integer("lost").notNull().default(0),
});

export const builds = pg.pgTable("builds", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  jobId: pg.text("job_id").notNull(),
  status: pg.text("status", { enum: jobStatuses }).notNull().default("queued"),
  tags: pg.text("tags").array().notNull().default(sql`'{}'`),
  imageDigest: pg.text("image_digest"),
  request: pg.jsonb("request").$type<BuildRequest>().notNull(),
  steps: pg.jsonb("steps").$type<BuildStepView[]>().notNull().default([]),
  warnings: pg.jsonb("warnings").$type<BuildWarningView[]>().notNull().default([]),
  error: pg.jsonb("error").$type<ShownError>(),
  createdAt: createdAt(),
  startedAt: time("started_at"),
  finishedAt: time("finished_at"),
  sourceId: pg.text("source_id"),
});

export const sources = pg.pgTable("sources", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  name: pg.text("name").notNull(),
  provider: pg.text("provider", { enum: sourceProviders }).notNull(),
  url: pg.text("url"),
  branches: pg.text("branches").array().notNull().default(sql`'{}'`),
  subdirectory: pg.text("subdirectory"),
  build: pg.jsonb("build").$type<SourceBuild>().notNull(),
  deploy: pg.jsonb("deploy").$type<DeployTemplate>(),
  secretSealed: pg.text("secret_sealed").notNull(),
  authSealed: pg.text("auth_sealed"),
  registryAuthSealed: pg.text("registry_auth_sealed"),
  secretsSealed: pg.text("secrets_sealed"),
  createdAt: createdAt(),
});

export const sourceHeads = pg.pgTable(
  "source_heads",
  {
    sourceId: pg.text("source_id").notNull(),
    projectId: projectId(),
    ref: pg.text("ref").notNull(),
    commit: pg.text("commit"),
    buildId: pg.text("build_id"),
  },
  (t) => [pg.primaryKey({ columns: [t.sourceId, t.ref] })],
);

export const deliveries = pg.pgTable("deliveries", {
  id: pg.text("id").primaryKey(),
  sourceId: pg.text("source_id").notNull(),
  projectId: projectId(),
  deliveryKey: pg.text("delivery_key").notNull(),
  event: pg.text("event").notNull(),
  ref: pg.text("ref"),
  status: pg.text("status", { enum: ["received", "ignored", "building"] }).notNull(),
  detail: pg.text("detail"),
  jobId: pg.text("job_id"),
  buildId: pg.text("build_id"),
  receivedAt: time("received_at").notNull().defaultNow(),
});

export const buildLogs = pg.pgTable(
  "build_logs",
  {
    buildId: pg.text("build_id").notNull(),
    projectId: projectId(),
    seq: size("seq").notNull(),
    step: pg.integer("step").notNull(),
    stream: pg.text("stream", { enum: ["stdout", "stderr", "info"] }).notNull(),
    text: pg.text("text").notNull(),
    at: time("at").notNull().defaultNow(),
  },
  (t) => [pg.primaryKey({ columns: [t.buildId, t.seq] })],
);

export const buildCache = pg.pgTable(
  "build_cache",
  {
    projectId: projectId(),
    key: pg.text("key").notNull(),
    result: pg.jsonb("result").$type<StepResult>().notNull(),
    createdAt: createdAt(),
    usedAt: time("used_at").notNull().defaultNow(),
  },
  (t) => [pg.primaryKey({ columns: [t.projectId, t.key] })],
);

export const containers = pg.pgTable("containers", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  hostId: pg.text("host_id").notNull(),
  name: pg.text("name").notNull(),
  spec: pg.jsonb("spec").$type<ContainerSpec>().notNull(),
  labels: pg.jsonb("labels").$type<Record<string, string>>().notNull().default({}),
  imageReference: pg.text("image_reference").notNull(),
  imageDigest: pg.text("image_digest"),
  cpus: pg.doublePrecision("cpus").notNull(),
  memory: size("memory").notNull(),
  pids: pg.integer("pids").notNull(),
  disk: size("disk").notNull(),
  wanted: pg.text("wanted", { enum: ["created", "running", "stopped", "removed"] }).notNull(),
  wantedRev: size("wanted_rev").notNull().default(1),
  wantedRun: size("wanted_run").notNull().default(0),
  wantedPaused: pg.boolean("wanted_paused").notNull().default(false),
  signals: pg.integer("signals").array().notNull().default(sql`'{}'`),
  seenRev: size("seen_rev").notNull().default(0),
  run: size("run").notNull().default(0),
  status: pg.text("status", { enum: containerStatuses }).notNull().default("created"),
  slot: pg.integer("slot"),
  ipAddress: pg.text("ip_address"),
  pid: pg.integer("pid"),
  exitCode: pg.integer("exit_code"),
  reason: pg.text("reason"),
  detail: pg.text("detail"),
  oomKilled: pg.boolean("oom_killed").notNull().default(false),
  restartCount: pg.integer("restart_count").notNull().default(0),
  restartAt: time("restart_at"),
  createdAt: createdAt(),
  startedAt: time("started_at"),
  finishedAt: time("finished_at"),
  health: pg.text("health", { enum: healthStates }),
});

export const deployments = pg.pgTable("deployments", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  sourceId: pg.text("source_id").notNull(),
  buildId: pg.text("build_id"),
  jobId: pg.text("job_id"),
  imageDigest: pg.text("image_digest").notNull(),
  template: pg.jsonb("template").$type<DeployTemplate>().notNull(),
  containerId: pg.text("container_id"),
  previousContainerId: pg.text("previous_container_id"),
  status: pg.text("status", { enum: deploymentStatuses }).notNull().default("pending"),
  reason: pg.text("reason"),
  detail: pg.text("detail"),
  createdAt: createdAt(),
  movedAt: time("moved_at").notNull().defaultNow(),
  finishedAt: time("finished_at"),
});

export const ports = pg.pgTable("ports", {
  id: pg.text("id").primaryKey(),
  projectId: projectId(),
  containerId: pg.text("container_id").notNull(),
  hostId: pg.text("host_id").notNull(),
  containerPort: pg.integer("container_port").notNull(),
  hostPort: pg.integer("host_port").notNull(),
  protocol: pg.text("protocol", { enum: ["tcp", "udp"] }).notNull(),
  hostAddress: inet("host_address").notNull().default("0.0.0.0/0"),
  status: pg
    .text("status", { enum: ["pending", "active", "removing"] })
    .notNull()
    .default("pending"),
  createdAt: createdAt(),
});

export const events = pg.pgTable("events", {
  id: pg.bigint("id", { mode: "number" }).primaryKey().generatedAlwaysAsIdentity(),
  xid: xid8("xid").notNull().default(sql`pg_current_xact_id()`),
  projectId: projectId(),
  type: pg.text("type").notNull(),
  subjectId: pg.text("subject_id").notNull(),
  data: pg.jsonb("data").$type<Record<string, unknown>>().notNull().default({}),
  at: time("at").notNull().defaultNow(),
});

export const idempotencyKeys = pg.pgTable(
  "idempotency_keys",
  {
    projectId: projectId(),
    key: pg.text("key").notNull(),
    requestHash: bytea("request_hash").notNull(),
    status: pg.integer("status").notNull(),
    response: pg.jsonb("response").$type<unknown>().notNull(),
    createdAt: createdAt(),
  },
  (t) => [pg.primaryKey({ columns: [t.projectId, t.key] })],
);
