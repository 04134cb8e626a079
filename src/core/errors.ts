/**
 * Every error that a client may see has a stable code. A code fixes the HTTP status, the title, and whether trying the
 * same again can help. Add codes here; never rename one.
 */
const codes = {
  invalid_request: [400, "The request is not valid", false],
  invalid_json: [400, "The body is not valid JSON", false],
  invalid_reference: [400, "The image reference is not valid", false],
  invalid_dockerfile: [400, "The Dockerfile has an error", false],
  invalid_context: [400, "The build context can't be used", false],
  unauthorized: [401, "A valid token is needed", false],
  invalid_signature: [401, "The webhook is not signed with its source's secret", false],
  forbidden: [403, "The token's role does not allow this", false],
  not_found: [404, "There is no such resource", false],
  image_not_found: [404, "There is no such image", false],
  file_not_found: [404, "The container has no such file", false],
  invalid_path: [400, "The path can't be used", false],
  invalid_archive: [400, "The archive can't be used", false],
  method_not_allowed: [405, "The method is not allowed here", false],
  name_taken: [409, "The name is taken", false],
  port_taken: [409, "The host port is taken", false],
  quota_exceeded: [409, "The project's quota does not allow this", false],
  no_capacity: [409, "No host has room for this", true],
  ports_exhausted: [409, "No host port is free", true],
  invalid_state: [409, "The resource's state does not allow this", false],
  memory_in_use: [409, "The container uses more memory than that", true],
  image_in_use: [409, "The image is in use", false],
  idempotency_key_reused: [409, "The Idempotency-Key came with another request before", false],
  body_too_large: [413, "The body is too large", false],
  unsupported_media_type: [415, "The body's media type is not supported", false],
  range_not_satisfiable: [416, "The range is not within the content", false],
  too_many_requests: [429, "Too many requests", true],
  internal: [500, "Something went wrong inside Berth", true],
  not_supported: [501, "Not supported yet", false],
  registry_unreachable: [502, "The registry can't be reached", true],
  registry_denied: [403, "The registry refused access", false],
  registry_error: [502, "The registry answered wrongly", true],
  repository_not_found: [404, "There is no such git repository", false],
  ref_not_found: [404, "The git repository has no such branch, tag, commit or directory", false],
  repository_denied: [403, "The git repository asks for credentials", false],
  git_auth_failed: [403, "The git repository refuses the credentials", false],
  repository_unreachable: [502, "The git repository can't be reached", true],
  download_failed: [502, "A file can't be downloaded", true],
  address_refused: [403, "Berth does not connect to this address", false],
  blob_store_error: [503, "The blob store can't be used", true],
  host_unavailable: [503, "The host does not answer", true],
  unavailable: [503, "Berth is not ready", true],
  // Of builds, layers and containers: in a resource's `error` or `reason`, never the answer's own status.
  invalid_image: [400, "The image is damaged or not supported", false],
  digest_mismatch: [400, "The content does not match its digest", false],
  layer_too_large: [400, "The layer exceeds a limit", false],
  secret_missing: [400, "The build lacks a secret that a step requires", false],
  step_failed: [400, "A build step failed", false],
  step_timeout: [400, "The build took too long", false],
  cancelled: [400, "It was cancelled", false],
  command_not_found: [400, "The command does not exist in the image", false],
  command_not_executable: [400, "The command can't be executed", false],
  invalid_user: [400, "The user does not exist in the image", false],
  start_failed: [500, "The container could not be started", true],
  monitor_lost: [500, "The container's monitor is gone, so its end is unknown", true],
  host_lost: [503, "The host has not been heard of lately", true],
  host_rebooted: [500, "The host was restarted", true],
  // Of deployments.
  container_ended: [400, "The new container ended before it served", false],
  not_healthy: [400, "The new container never became healthy", false],
  deploy_timeout: [400, "The new container took too long to serve", false],
  superseded: [409, "A newer deployment took its place", false],
  host_port_in_use: [409, "A process of the host uses the port", false],
  disk_full: [507, "The host's disk is full", true],
  attempts_exhausted: [500, "It was tried too often", false],
} as const satisfies Record<string, readonly [number, string, boolean]>;

export type ErrorCode = keyof typeof codes;

/** One wrong place of the input: a JSON pointer (RFC 6901) and what is wrong there. */
export interface InputProblem {
  pointer: string;
  detail: string;
}

/** An error with a stable code, whose `message` is written for the client; the cause is for the log only. */
export class BerthError extends Error {
  readonly code: ErrorCode;
  readonly problems: readonly InputProblem[];
  /** Facts that belong to the code, such as `{ exitCode: 3 }`; visible to the client. */
  readonly facts: Readonly<Record<string, string | number>>;

  constructor(
    code: ErrorCode,
    detail: string,
    more: { problems?: readonly InputProblem[]; facts?: Record<string, string | number>; cause?: unknown } = {},
  ) {
    super(detail, more.cause === undefined ? {} : { cause: more.cause });
    this.name = "BerthError";
    this.code = code;
    this.problems = more.problems ?? [];
    this.facts = more.facts ?? {};
  }

  get status(): number {
    return codes[this.code][0];
  }
  get title(): string {
    return codes[this.code][1];
  }
  /** Whether the same request, sent again later, can succeed. */
  get retryable(): boolean {
    return codes[this.code][2];
  }
}

/** The error as it is, when it is ours; otherwise `internal`, with the original as its cause. */
export function toBerthError(error: unknown): BerthError {
  return error instanceof BerthError
    ? error
    : new BerthError("internal", "Something went wrong inside Berth.", { cause: error });
}
