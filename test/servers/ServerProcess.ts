/**
 * The process of a private server.
 *
 * A shell starts it and says its pid. It watches over it: its input is this process, and when that ends, however it
 * does, the shell ends the server as well.
 *
 * Waiting here is on the real clock, whatever clock the test has.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { existsSync } from "node:fs"

export interface Command {
  /** Says the server's pid on its first line, and ends with the server. */
  readonly script: string
  readonly args: ReadonlyArray<string>
  readonly env: NodeJS.ProcessEnv
  /** Whom it runs as. Default: whoever we are. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
}

export class ServerProcess {
  private shell: ChildProcess | undefined
  /** Zero while it is down. */
  pid = 0

  isUp(): boolean {
    return this.shell !== undefined && this.shell.exitCode === null && this.shell.signalCode === null
  }

  /** Starts it; one that does not become ready ends again, with what `failure` says. */
  async launch(
    { args, env, gid, script, uid }: Command,
    isReady: () => Promise<boolean> | boolean,
    failure: () => string,
    within?: number
  ): Promise<void> {
    const child = spawn("sh", ["-c", script, "sh", ...args], {
      stdio: ["pipe", "pipe", "ignore"],
      env,
      detached: true,
      ...(uid === undefined || gid === undefined ? {} : { uid, gid, cwd: "/" })
    })
    this.shell = child
    this.pid = await new Promise<number>((resolve, reject) => {
      child.stdout.once("data", (text) => resolve(Number(text)))
      child.once("error", reject)
    })
    // A server that nobody stops must not keep this process from ending.
    child.unref()
    for (const pipe of [child.stdin, child.stdout]) (pipe as unknown as { unref: () => void }).unref()
    try {
      await waitUntil(async () => !this.isUp() || (await isReady()), failure, within)
      if (!this.isUp()) throw new Error(failure())
    } catch (error) {
      await this.end("SIGKILL")
      throw error
    }
  }

  signal(name: NodeJS.Signals): void {
    if (this.isUp()) process.kill(this.pid, name)
  }

  /** Returns when it is gone. */
  async end(name: NodeJS.Signals): Promise<void> {
    const ending = this.shell
    if (ending === undefined || !this.isUp()) return
    const gone = new Promise((resolve) => ending.once("exit", resolve))
    ending.ref()
    // One that is frozen would not hear any other signal.
    this.signal("SIGCONT")
    this.signal(name)
    await gone
    this.pid = 0
  }
}

/** Polls until the condition holds, or throws what `failure` says. */
export const waitUntil = async (
  condition: () => Promise<boolean> | boolean,
  failure: () => string,
  within = 20_000
): Promise<void> => {
  const deadline = Date.now() + within
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(failure())
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Installs the Debian package of what is not there, where that is allowed; otherwise says how. */
export const ensureInstalled = <A>(name: string, brew: string, find: () => A | undefined): A => {
  let output = ""
  if (find() === undefined && process.getuid?.() === 0 && existsSync("/usr/bin/apt-get")) {
    // flock: test files run side by side. RUNLEVEL: the package does not start a server of its own.
    const isInstalled = `dpkg-query -W -f '\${Status}' ${name} | grep -q 'ok installed'`
    const install = `${isInstalled} || { apt-get update && apt-get install -y --no-install-recommends ${name}; }`
    const { stderr, stdout } = spawnSync("flock", ["/tmp/cohort-apt.lock", "sh", "-c", install], {
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", RUNLEVEL: "1" },
      encoding: "utf8"
    })
    output = `\n${stdout}${stderr}`.slice(-1_000)
  }
  const found = find()
  if (found === undefined) throw new Error(`no ${name} here: apt-get install ${name}, or brew install ${brew}${output}`)
  return found
}

/** A program on the path, from the package of Debian that has it, as {@link ensureInstalled}; its path. */
export const ensureCommand = (command: string, name: string): string =>
  ensureInstalled(name, name, () => {
    const { status, stdout } = spawnSync("sh", ["-c", `command -v ${command}`], { encoding: "utf8" })
    return status === 0 ? stdout.trim() : undefined
  })
