/** Starts `main.ts` as a process of its own, and talks to it. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { assert } from "@effect/vitest"
import { ensureCommand } from "../servers/ServerProcess.ts"

const root = path.join(import.meta.dirname, "..", "..")
const children: Array<ChildProcess> = []

export const killAll = () => {
  for (const child of children.splice(0)) child.kill("SIGKILL")
}

export interface Main {
  /** Grows as it prints. */
  output: string
  readonly pid: number
  readonly exited: Promise<number | null>
  readonly kill: (signal: NodeJS.Signals) => void
}

/** With the environment as it is, except for `env`; `undefined` takes a variable away. */
export const mainWith = (env: Record<string, string | undefined>, ...args: ReadonlyArray<string>): Main =>
  mainIn(root, env, ...args)

/** In another working directory. */
export const mainIn = (cwd: string, env: Record<string, string | undefined>, ...args: ReadonlyArray<string>): Main => {
  const child = spawn(process.execPath, [path.join(root, "src", "main.ts"), ...args], {
    cwd,
    env: { ...process.env, ...env }
  })
  children.push(child)
  const host: Main = {
    output: "",
    pid: child.pid!,
    exited: new Promise<number | null>((resolve) => child.on("close", resolve)),
    kill: (signal) => child.kill(signal)
  }
  const collect = (text: Buffer) => {
    host.output += text.toString()
  }
  child.stdout.on("data", collect)
  child.stderr.on("data", collect)
  return host
}

export const main = (...args: ReadonlyArray<string>): Main => mainWith({}, ...args)

/** Asks again until the answer is there; fails after 45 seconds. */
export const until = async <A>(what: string, ask: () => Promise<A | undefined> | A | undefined): Promise<A> => {
  const deadline = performance.now() + 45_000
  while (performance.now() < deadline) {
    const answer = await ask()
    if (answer !== undefined) return answer
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`never happened: ${what}`)
}

/** The URLs that `start` prints, in the order of the instances. */
export const urls = (host: { readonly output: string }, count: number): Promise<ReadonlyArray<string>> =>
  until(`${count} instances listen:\n${host.output}`, () => {
    const found = [...host.output.matchAll(/^ {2}\S+ {2}(http:\S+)/gm)].map(([, url]) => url!)
    return found.length === count && host.output.includes("Ctrl-C") ? found : undefined
  })

export const request = async (method: string, url: string, body?: unknown) => {
  const response = await fetch(url, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } })
  })
  const text = await response.text()
  return { status: response.status, body: text === "" ? undefined : JSON.parse(text) }
}

export interface Process {
  readonly pid: number
  readonly parent: number
  readonly command: string
}

/** What a process has started, directly or not. */
export const descendants = (pid: number): ReadonlyArray<Process> => {
  const all = execFileSync(ensureCommand("ps", "procps"), ["-eo", "pid=,ppid=,args="], {
    encoding: "utf8",
    maxBuffer: 1 << 24
  })
    .trim()
    .split("\n")
    .map((line): Process => {
      const [, pid, parent, command] = /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line)!
      return { pid: Number(pid), parent: Number(parent), command: command! }
    })
  const of = (parent: number): ReadonlyArray<Process> =>
    all.filter((process) => process.parent === parent).flatMap((process) => [process, ...of(process.pid)])
  return of(pid)
}

export const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    // What has ended and was not waited for yet is not alive.
    const status = `/proc/${pid}/stat`
    return !existsSync(status) || !/\) Z/.test(readFileSync(status, "utf8"))
  } catch {
    return false
  }
}

/** A run that is refused: exit code 1, and one line that says why, without what is secret. */
export const saysInOneLine = async (wrong: ReadonlyArray<readonly [Main, RegExp]>) => {
  for (const [host, line] of wrong) {
    assert.strictEqual(await host.exited, 1, host.output)
    assert.match(host.output, line)
    assert.notInclude(host.output, "s3cret")
  }
}

/** With a directory that has nothing but a shell, for the PATH. */
export const shellOnly = async (test: (path: string) => Promise<void>) => {
  const bin = mkdtempSync(path.join(tmpdir(), "cohort-path-"))
  try {
    symlinkSync(["/bin/sh", "/usr/bin/sh"].find((shell) => existsSync(shell))!, path.join(bin, "sh"))
    await test(bin)
  } finally {
    rmSync(bin, { recursive: true })
  }
}
