import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { BerthError } from "../../core/errors.ts";
import { anyEvent } from "./any-event.ts";
import { type GitRun, startGit } from "./program.ts";

/** A request of git's smart HTTP protocol (gitprotocol-http), for one repository. */
export interface GitRequest {
  repository: string;
  /** Below the repository, such as `info/refs`. */
  path: string;
  method: "GET" | "POST";
  query: string;
  /** Who asks; git lets nobody push who has no name. */
  user: string;
  headers: Headers;
  body: ReadableStream<Uint8Array> | null;
  maxBodyBytes: number;
  config: Readonly<Record<string, string>>;
  signal: AbortSignal;
}

/** Bytes of the header that git answers with. */
const maxHeader = 65_536;

/**
 * Hands a request to `git http-backend`, which is a CGI program (RFC 3875), and answers with what it says as it says it.
 * When the client goes, or the signal fires, git ends.
 * @throws BerthError `unavailable` when git gave no answer
 */
export async function serveGit(request: GitRequest, started: (run: GitRun) => void): Promise<Response> {
  const { repository, path, method, query, user, headers, body, config, signal } = request;
  signal.throwIfAborted();
  const run = startGit(["http-backend"], {
    config,
    env: {
      GIT_PROJECT_ROOT: repository,
      GIT_HTTP_EXPORT_ALL: "1",
      GATEWAY_INTERFACE: "CGI/1.1",
      REQUEST_METHOD: method,
      PATH_INFO: `/${path}`,
      QUERY_STRING: query,
      REMOTE_USER: user,
      CONTENT_TYPE: headers.get("content-type") ?? "",
      HTTP_CONTENT_ENCODING: headers.get("content-encoding") ?? "",
      GIT_PROTOCOL: headers.get("git-protocol") ?? "",
    },
  });
  started(run);
  run.stderr.resume();
  signal.addEventListener("abort", run.stop, { once: true });
  void run.ended.catch(() => undefined).then(() => signal.removeEventListener("abort", run.stop));
  if (body === null) run.stdin.end();
  else pipeline(Readable.fromWeb(body), upTo(request.maxBodyBytes), run.stdin).catch(() => run.stop());
  const header = await readHeader(run.stdout);
  if (header === null) {
    run.stop();
    throw new BerthError("unavailable", "git did not answer.");
  }
  const answered = new Headers({ "Cache-Control": "no-cache" });
  let status = 200;
  for (const line of header.split(/\r?\n/)) {
    const [, name = "", value = ""] = /^([\w-]+):\s*(.*)$/.exec(line) ?? [];
    if (name.toLowerCase() === "status") status = Number.parseInt(value, 10);
    else if (name !== "") answered.set(name, value);
  }
  run.stdout.once("close", run.stop);
  return new Response(Readable.toWeb(run.stdout) as ReadableStream, { status, headers: answered });
}

/** Lets so many bytes through, and then breaks off. */
function upTo(maxBytes: number): Transform {
  let passed = 0;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      passed += chunk.length;
      if (passed > maxBytes) done(new BerthError("body_too_large", `A push has at most ${String(maxBytes)} bytes.`));
      else done(null, chunk);
    },
  });
}

/** Reads up to the empty line that ends the header, and gives back what came after it; null: it ended before. */
async function readHeader(stdout: Readable): Promise<string | null> {
  let head = Buffer.alloc(0);
  for (;;) {
    const chunk = stdout.read() as Buffer | null;
    if (chunk === null) {
      if (stdout.readableEnded || stdout.destroyed) return null;
      await anyEvent(stdout, "readable", "end", "close");
      continue;
    }
    head = Buffer.concat([head, chunk]);
    const end = head.indexOf("\r\n\r\n");
    if (end >= 0) {
      if (head.length > end + 4) stdout.unshift(head.subarray(end + 4));
      return head.toString("latin1", 0, end);
    }
    if (head.length > maxHeader) return null;
  }
}
