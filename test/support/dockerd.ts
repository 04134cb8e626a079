import { spawn } from "node:child_process";
import { once } from "node:events";

/** A dockerd of Debian's docker.io with data, socket and containerd of its own. */
export interface Dockerd {
  socket: string;
  /** Resolves when it has ended; its files stay. */
  stop(): Promise<void>;
}

/**
 * Starts one whose files are all in this directory; answers when it does.
 * @param argv `dockerd` and more of its options, or what leads to it, such as nsenter
 */
export async function startDockerd(dir: string, argv: readonly string[], env = process.env): Promise<Dockerd> {
  const socket = `${dir}/docker.sock`;
  const [program = "", ...args] = argv;
  const own = ["--data-root", `${dir}/data`, "--exec-root", `${dir}/run`, "--pidfile", `${dir}/pid`];
  const daemon = spawn(program, [...args, ...own, "-H", `unix://${socket}`], {
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let log = "";
  await new Promise<void>((resolve, reject) => {
    daemon.stderr.on("data", (chunk: Buffer) => {
      log = (log + chunk.toString()).slice(-4000);
      if (log.includes("API listen on")) resolve();
    });
    daemon.once("error", reject);
    daemon.once("exit", () => reject(new Error(`dockerd ended: ${log}`)));
  });
  return {
    socket,
    async stop() {
      if (daemon.exitCode !== null || daemon.signalCode !== null) return;
      const ended = once(daemon, "exit");
      daemon.kill("SIGTERM");
      await ended;
    },
  };
}
