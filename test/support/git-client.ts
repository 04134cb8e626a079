import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { text } from "node:stream/consumers";

/** A run of git: what it printed, stderr as a terminal would have it in lines. */
export interface GitResult {
  exitCode: number | null;
  stdout: string;
  stderr: string;
}

/** A working copy of a tenant's, and the real git. */
export class GitClient {
  readonly directory = mkdtempSync(join(tmpdir(), "berth-git-client-"));

  static async create(): Promise<GitClient> {
    const client = new GitClient();
    await client.git("init", "--quiet", "--initial-branch=main");
    return client;
  }

  /** Begins git without waiting for its end. */
  start(args: readonly string[], env: Record<string, string> = {}, input: Buffer | null = null) {
    const child = spawn("git", ["-C", this.directory, ...args], {
      env: {
        PATH: process.env["PATH"] ?? "",
        HOME: this.directory,
        GIT_CONFIG_NOSYSTEM: "1",
        GIT_TERMINAL_PROMPT: "0",
        GIT_AUTHOR_NAME: "test",
        GIT_AUTHOR_EMAIL: "test@example.org",
        GIT_COMMITTER_NAME: "test",
        GIT_COMMITTER_EMAIL: "test@example.org",
        ...env,
      },
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    child.stdin.on("error", () => undefined).end(input ?? undefined);
    const closed = once(child, "close");
    const ended = Promise.all([text(child.stdout), text(child.stderr), closed]).then(
      ([stdout, stderr, [exitCode]]): GitResult => ({ exitCode: exitCode as number | null, stdout, stderr }),
    );
    return { child, ended };
  }

  git(...args: string[]): Promise<GitResult> {
    return this.start(args).ended;
  }

  /** Writes files (`*.sh` executable), commits all, and answers the commit's id. */
  async commit(files: Record<string, string | Buffer>, message = "change"): Promise<string> {
    for (const [path, content] of Object.entries(files)) {
      const file = join(this.directory, path);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, content);
      if (path.endsWith(".sh")) chmodSync(file, 0o755);
    }
    await this.git("add", "--all");
    await this.git("commit", "--quiet", "--allow-empty", "-m", message);
    return (await this.git("rev-parse", "HEAD")).stdout.trim();
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}
