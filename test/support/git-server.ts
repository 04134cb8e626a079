import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname, join } from "node:path";
import { Owned } from "./ownership.ts";

/**
 * `git http-backend` on a loopback port, with the repository `/site.git`. Besides it: `/private.git` is the same for who has
 * the credentials, `/module.git` is the same by another name, `/denied.git` is for nobody, `/moved.git` redirects to it,
 * `/hang.git` never answers.
 */
export interface GitServer {
  port: number;
  /** Paths that were asked for. */
  requests: string[];
  /** Resolves when `/hang.git` is asked. */
  hanging: Promise<void>;
  /**
   * Commits on `branch`, which begins where the last one was committed to; a null content is a link to `site`, an object
   * one to elsewhere. Returns the commit's id.
   */
  commit(branch: string, files: Record<string, string | null | { link: string }>): string;
  git(...args: string[]): string;
  close(): Promise<void>;
}

/** Of `/private.git`. */
export const gitLogin = { username: "ada", password: "hunter2: of the repository" };

export async function startGitServer(): Promise<GitServer> {
  const owned = Owned.directory("berth-git-test-");
  const { directory } = owned.footprint;
  const work = join(directory, "work");
  const env = {
    PATH: process.env.PATH,
    HOME: directory,
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_AUTHOR_NAME: "test",
    GIT_AUTHOR_EMAIL: "test@example.org",
    GIT_COMMITTER_NAME: "test",
    GIT_COMMITTER_EMAIL: "test@example.org",
    GIT_AUTHOR_DATE: "@1700000000 +0000",
    GIT_COMMITTER_DATE: "@1700000000 +0000",
  };
  const git = (...args: string[]) => execFileSync("git", ["-C", work, ...args], { env, encoding: "utf8" }).trim();
  execFileSync("git", ["init", "--quiet", "--initial-branch=main", work], { env });
  execFileSync("git", ["init", "--quiet", "--bare", "--initial-branch=main", join(directory, "site.git")], { env });

  const requests: string[] = [];
  const { promise: hanging, resolve: hangs } = Promise.withResolvers<void>();
  const server = createServer((request, response) => {
    const path = request.url ?? "/";
    requests.push(path);
    if (path.startsWith("/hang.git")) return hangs();
    const basic = Buffer.from(`${gitLogin.username}:${gitLogin.password}`).toString("base64");
    const allowed = path.startsWith("/private.git") && request.headers.authorization === `Basic ${basic}`;
    if (/^\/(?:denied|private)\.git/.test(path) && !allowed)
      response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
    else if (path.startsWith("/moved.git")) response.writeHead(302, { location: path.replace("moved", "site") }).end();
    else backend(directory, path.replace(/^\/(?:private|module)\./, "/site."), request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    requests,
    hanging,
    git,
    commit(branch, files) {
      git("checkout", "--quiet", "-B", branch);
      for (const [path, content] of Object.entries(files)) {
        mkdirSync(dirname(join(work, path)), { recursive: true });
        if (content === null || typeof content === "object") symlinkSync(content?.link ?? "site", join(work, path));
        else writeFileSync(join(work, path), content, { mode: path.endsWith(".sh") ? 0o755 : 0o644 });
      }
      git("add", "--all");
      git("commit", "--quiet", "--allow-empty", "-m", "change");
      git("push", "--quiet", "--mirror", join(directory, "site.git"));
      return git("rev-parse", "HEAD");
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
      await owned.remove();
    },
  };
}

/** One request as CGI (RFC 3875). */
function backend(root: string, path: string, request: IncomingMessage, response: ServerResponse): void {
  const url = new URL(path, "http://server");
  const child = spawn("git", ["http-backend"], {
    env: {
      PATH: process.env.PATH,
      HOME: root,
      GIT_CONFIG_NOSYSTEM: "1",
      GIT_PROJECT_ROOT: root,
      GIT_HTTP_EXPORT_ALL: "1",
      REQUEST_METHOD: request.method ?? "GET",
      PATH_INFO: url.pathname,
      QUERY_STRING: url.search.slice(1),
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
      GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
    },
    stdio: ["pipe", "pipe", "ignore"],
  });
  child.stdin.on("error", () => undefined);
  request.pipe(child.stdin);
  const parts: Buffer[] = [];
  child.stdout.on("data", (part: Buffer) => parts.push(part));
  child.on("close", () => {
    const all = Buffer.concat(parts);
    const end = all.indexOf("\r\n\r\n");
    for (const line of all.toString("latin1", 0, end).split("\r\n")) {
      const [name = "", value = ""] = line.split(": ");
      if (name === "Status") response.statusCode = Number.parseInt(value, 10);
      else response.setHeader(name, value);
    }
    response.end(all.subarray(end + 4));
  });
}
