import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root, run, step } from "./report.mjs";

/** @typedef {{ purpose: string, name: string, probe: string }} Package */

/** The packages of infra/packages.txt that serve one of the purposes (`run`, `test`). @returns {Package[]} */
export function packagesFor(/** @type {string[]} */ purposes) {
  return readFileSync(join(root, "infra/packages.txt"), "utf8")
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))
    .map((line) => {
      const [purpose = "", name = "", probe = ""] = line.trim().split(/\s+/);
      return { purpose, name, probe };
    })
    .filter((each) => purposes.includes(each.purpose));
}

/** Those that are not there. Looks at files only, so that a start with nothing missing costs no process. */
export function missing(/** @type {Package[]} */ packages) {
  const programs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", ...(process.env.PATH ?? "").split(":")].filter(Boolean);
  const triplets = readdirSync("/usr/lib").filter((name) => name.endsWith("-linux-gnu"));
  const libraries = ["/lib64", "/usr/lib64", "/usr/lib", ...triplets.map((name) => `/usr/lib/${name}`)];
  return packages.filter(({ probe }) => {
    if (probe.startsWith("/")) return !existsSync(probe);
    return !(/\.so\.\d+$/.test(probe) ? libraries : programs).some((dir) => existsSync(join(dir, probe)));
  });
}

/** Installs by apt. @returns {Promise<string | null>} what went wrong, in a sentence */
export async function install(/** @type {Package[]} */ packages) {
  const names = packages.map((each) => each.name);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  return step(`packages      installing ${names.join(", ")} by apt`, async () => {
    // An old package index may name versions that are gone; a failed update is judged by the install after it.
    await run("apt-get", ["-q", "update"], env);
    const failure = await run("apt-get", ["-qy", "install", "--no-install-recommends", ...names], env);
    return failure === null ? null : `apt-get could not install ${names.join(", ")}: ${failure}`;
  });
}
