/**
 * Releases that there have been, and this one, in one cluster: instances of each run as processes of their own, from the
 * sources in `releases`.
 *
 * - `without-envelopes`: before traces went along with messages and jobs. It knows bare payloads only. Redis only: what
 *   queues keep on RabbitMQ was not settled yet.
 * - `first`: the first one with everything on Redis and RabbitMQ.
 *
 * The next is made by `git archive <commit> src/index.ts src/services src/layers | gzip -9n`, and none is changed.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as PostgresServer from "../servers/PostgresServer.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { waitUntil } from "../servers/ServerProcess.ts"
import type { Does, Heard } from "./release-worker.ts"

const root = join(import.meta.dirname, "..", "..")
const folder = mkdtempSync(join(tmpdir(), "cohort-releases-"))
const children: Array<ChildProcess> = []

afterAll(() => {
  for (const child of children) child.kill("SIGKILL")
  rmSync(folder, { recursive: true, maxRetries: 5 })
})

/** Where the sources of a release are. */
const unpack = (release: string): string => {
  const place = join(folder, release)
  if (existsSync(place)) return join(place, "src")
  mkdirSync(place)
  execFileSync("tar", ["-xzf", join(import.meta.dirname, "releases", `${release}.tar.gz`), "-C", place])
  symlinkSync(join(root, "node_modules"), join(place, "node_modules"))
  return join(place, "src")
}

type Answer<K extends keyof Does> = ReturnType<Does[K]>

class Process {
  readonly id: string
  readonly heard: Array<Heard> = []
  private readonly answers: Array<(answer: never) => void> = []
  private readonly child: ChildProcess
  private errors = ""

  constructor(
    sources: string,
    backend: string,
    url: string,
    app: string,
    id: string,
    version: string,
    environment: Record<string, string | undefined> = {}
  ) {
    this.id = id
    const script = join(import.meta.dirname, "release-worker.ts")
    this.child = spawn(process.execPath, [script, sources, backend, url, app, id, version], {
      env: { ...process.env, DATABASE_URL: undefined, ...environment }
    })
    children.push(this.child)
    this.child.stderr!.on("data", (text) => (this.errors += text))
    createInterface(this.child.stdout!).on("line", (line) => {
      const message = JSON.parse(line)
      if ("answer" in message) this.answers.shift()!(message.answer as never)
      else this.heard.push(message)
    })
  }

  hears(what: string, condition: (heard: ReadonlyArray<Heard>) => boolean): Promise<void> {
    return waitUntil(
      () => condition(this.heard),
      () => `${this.id} never heard ${what}: ${JSON.stringify(this.heard)}\n${this.errors}`,
      30_000
    )
  }

  async tell<K extends keyof Does>(what: K, ...args: Parameters<Does[K]>): Promise<Answer<K>> {
    let answer: { readonly is: Answer<K> } | undefined
    this.answers.push((is) => {
      answer = { is }
    })
    this.child.stdin!.write(`${JSON.stringify([what, ...args])}\n`)
    await waitUntil(
      () => answer !== undefined,
      () => `${this.id} does not answer to ${what}\n${this.errors}`,
      30_000
    )
    return answer!.is
  }

  /** What it does not live to answer. */
  tellLast<K extends keyof Does>(what: K, ...args: Parameters<Does[K]>): Promise<unknown> {
    const died = new Promise((resolve) => this.child.once("exit", resolve))
    this.child.stdin!.write(`${JSON.stringify([what, ...args])}\n`)
    return died
  }

  /** Until the answer is this one. */
  async tells<K extends keyof Does>(answer: Answer<K>, what: K, ...args: Parameters<Does[K]>): Promise<void> {
    let last: Answer<K> | undefined
    await waitUntil(
      async () => {
        last = await this.tell(what, ...args)
        return JSON.stringify(last) === JSON.stringify(answer)
      },
      () => `${this.id} ${what}: ${JSON.stringify(last)}, never ${JSON.stringify(answer)}`,
      30_000
    )
  }

  /** Takes jobs until it has begun this attempt of that one, which then ends. */
  async runs(n: number, attempt: number): Promise<Heard> {
    const isIt = (heard: Heard) => heard.heard === "job" && heard.n === n && heard.attempt === attempt
    const before = this.heard.length
    await this.tell("work")
    await this.hears(`attempt ${attempt} of job ${n}`, (heard) => heard.slice(before).some(isIt))
    await this.tell("rest")
    return this.heard.slice(before).find(isIt)!
  }
}

const numbers = (heard: ReadonlyArray<Heard>, kind: "news" | "sync") =>
  heard.flatMap((one) => (one.heard === kind ? [one.n] : []))

let app = 0

const suite = (release: string, backend: "redis" | "amqp", server: Effect.Effect<string>) =>
  describe(`${release} and this release on ${backend}`, () => {
    let old: Process
    let young: Process

    beforeAll(async () => {
      const url = await Effect.runPromise(server)
      const name = `releases-${process.pid}-${++app}`
      old = new Process(unpack(release), backend, url, name, "old", "1")
      await old.hears("that it is ready", (heard) => heard.length > 0)
      // Before there is anybody to hear it.
      await old.tell("sync", 1)
      young = new Process(join(root, "src"), backend, url, name, "young", "2")
      await young.hears("that it is ready", (heard) => heard.length > 0)
    }, 120_000)

    const bothWays = (body: (from: Process, to: Process, n: number) => Promise<void>) => async () => {
      await body(old, young, 1)
      await body(young, old, 2)
    }

    it("see each other, with the version of the app that each has", { timeout: 60_000 }, async () => {
      const both = [
        ["old", "1"],
        ["young", "2"]
      ] as const
      await old.tells(both, "members")
      await young.tells(both, "members")
    })

    it(
      "hear each other's broadcasts in order, and sync messages, after a resync for what was before",
      { timeout: 60_000 },
      bothWays(async (from, to) => {
        for (const n of [10, 11, 12]) await from.tell("news", n)
        await to.hears("the news", (heard) => numbers(heard, "news").length === 3)
        assert.deepStrictEqual(numbers(to.heard, "news"), [10, 11, 12])
        for (const n of [20, 21]) await from.tell("sync", n)
        await to.hears("the sync messages", (heard) => numbers(heard, "sync").length === 2)
        assert.deepStrictEqual(numbers(to.heard, "sync"), [20, 21])
        const kinds = to.heard.map(({ heard }) => heard)
        assert.isBelow(kinds.indexOf("resync"), kinds.indexOf("sync"))
      })
    )

    it(
      "retry each other's jobs, bury them, and redrive each other's dead letters, with all that is in them",
      { timeout: 120_000 },
      bothWays(async (from, to, n) => {
        // Only the new version of the app has it.
        const colour = from === young ? { colour: "red" } : {}
        const job = { n, fails: 2, ...colour }
        await from.tell("job", job, 1)
        await to.runs(n, 1)
        await from.runs(n, 2)
        const dead = [[JSON.stringify(job), 2]] as const
        await to.tells(dead, "dead")
        await from.tells(dead, "dead")
        assert.strictEqual(await to.tell("redrive"), 1)
        await from.runs(n, 1)
        await to.runs(n, 2)
        await from.tells(dead, "dead")
        assert.strictEqual(await from.tell("redrive"), 1)
        await to.runs(n, 1)
        assert.include(await from.runs(n, 2), { n, attempt: 2, ...colour })
        await to.tells(dead, "dead")
        assert.strictEqual(await to.tell("discard"), 1)
        await from.tells([], "dead")
      })
    )

    it(
      "share caches and locks",
      { timeout: 60_000 },
      bothWays(async (from, to, n) => {
        await from.tell("set", "key", n)
        await to.tells(n, "get", "key")
        const fence = await from.tell("lock", "key")
        assert.isNotNull(fence)
        assert.isNull(await to.tell("lock", "key"))
        await from.tell("unlock")
        const next = await to.tell("lock", "key")
        assert.isAbove(next!, fence)
        await to.tell("unlock")
      })
    )

    if (release === "without-envelopes") {
      it("what is sent in a trace is skipped and counted, and kept as a dead letter, by a release that cannot read it", {
        timeout: 60_000
      }, async () => {
        await young.tell("tracedNews", 30)
        await young.tell("news", 31)
        await old.hears("the news", (heard) => numbers(heard, "news").includes(31))
        assert.notInclude(numbers(old.heard, "news"), 30)
        assert.strictEqual(await old.tell("undecodable"), 1)
        await young.tell("tracedJob", { n: 32 }, 0)
        await old.tell("work")
        await young.tells([['{"n":32}', 1]], "dead")
        await old.tell("rest")
        assert.strictEqual(await young.tell("redrive"), 1)
        await young.runs(32, 1)
      })
    } else {
      it(
        "read what the other sends in a trace",
        { timeout: 60_000 },
        bothWays(async (from, to, n) => {
          await from.tell("tracedNews", 30 + n)
          await to.hears("the news", (heard) => numbers(heard, "news").includes(30 + n))
          await from.tell("tracedJob", { n: 30 + n }, 0)
          await to.runs(30 + n, 1)
        })
      )
    }
  })

const [redis, amqp] = [RedisServer.sharedUrl, RabbitServer.sharedUrl]
for (const [release, backend, server] of [
  ["without-envelopes", "redis", redis],
  ["first", "redis", redis],
  ["first", "amqp", amqp]
] as const) {
  suite(release, backend, server)
}

describe("outbox rows on postgres, of first and this release", () => {
  const sources = { old: () => unpack("first"), young: () => join(root, "src") }
  const versions = { old: "1", young: "2" }
  for (const [from, to] of [
    ["old", "young"],
    ["young", "old"]
  ] as const) {
    it.live(
      `that the ${from} one committed when it died are sent by the ${to} one`,
      () =>
        Effect.gen(function* () {
          const url = yield* redis
          const environment = { DATABASE_URL: yield* PostgresServer.database }
          const name = `releases-${process.pid}-${++app}`
          const start = async (which: "old" | "young") => {
            const process = new Process(sources[which](), "redis", url, name, which, versions[which], environment)
            await process.hears("that it is ready", (heard) => heard.length > 0)
            return process
          }
          yield* Effect.promise(async () => {
            const [dying, living] = [await start(from), await start(to)]
            await dying.tellLast("commitAndDie", 7)
            await living.hears("the sync message", (heard) => numbers(heard, "sync").includes(7))
            await living.runs(7, 1)
          })
        }),
      90_000
    )
  }
})
