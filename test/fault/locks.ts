/** What the fault tests of locks share: processes that take locks when told to, and the soak. */
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { waitUntil } from "../servers/ServerProcess.ts"
import type { Order, Report } from "./lock-worker.ts"

const script = (name: string) => new URL(name, import.meta.url).pathname

/** A process of its own, which takes locks when told to. */
export const startWorker = (url: string, app = "fault") =>
  Effect.gen(function* () {
    const worker = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [script("./lock-worker.ts"), url, app], { stdio: ["pipe", "pipe", "inherit"] })
      ),
      (worker) => Effect.sync(() => worker.kill("SIGKILL"))
    )
    worker.stdin.on("error", () => undefined)
    const reports: Array<Report> = []
    createInterface({ input: worker.stdout }).on("line", (line) => reports.push(JSON.parse(line)))
    const order = (order: Order) => Effect.sync(() => void worker.stdin.write(`${JSON.stringify(order)}\n`))
    const find = (name: string, what: Report["what"]) =>
      reports.find((report) => report.name === name && report.what === what)
    /** Waits for a report. */
    const hears = (name: string, what: Report["what"], within = 15_000) =>
      Effect.promise(async () => {
        const failure = () => `never ${what}: ${name}; heard ${JSON.stringify(reports)}`
        await waitUntil(() => find(name, what) !== undefined, failure, within)
        return find(name, what)!
      })
    yield* hears("", "ended", 60_000)
    return {
      hold: (name: string, options: { readonly ttl: number; readonly key?: string }) =>
        order({ op: "hold", name, key: "k", ...options }),
      release: (name: string) => order({ op: "release", name }),
      hears,
      fence: (name: string, within?: number) => Effect.map(hears(name, "granted", within), ({ fence }) => fence!),
      has: (name: string, what: Report["what"]) => find(name, what) !== undefined,
      signal: (signal: NodeJS.Signals) => Effect.sync(() => void worker.kill(signal))
    }
  })

export const workersOn = (url: string, count: number, app?: string) =>
  Effect.all(
    Array.from({ length: count }, () => startWorker(url, app)),
    { concurrency: "unbounded" }
  )

/** The short form of `npm run soak:lock`. */
export const soak = (backend: "redis" | "amqp", seconds: number) =>
  Effect.promise(async () => {
    const driver = spawn(process.execPath, [script("./soak/lock.ts"), String(seconds), "--backend", backend], {
      stdio: ["ignore", "pipe", "pipe"]
    })
    let output = ""
    for (const stream of [driver.stdout, driver.stderr]) stream.on("data", (text) => (output += text))
    const code = await new Promise((resolve) => driver.once("exit", resolve))
    assert.strictEqual(code, 0, output)
  })
