/** The host on Redis: a supervisor, and a process for each instance. */
import { existsSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import {
  descendants,
  isAlive,
  killAll,
  type Main,
  main,
  mainWith,
  type Process,
  request,
  until,
  urls
} from "./support.ts"

const scope = Effect.runSync(Scope.make())
let server: RedisServer.RedisServer

beforeAll(async () => {
  server = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
afterEach(killAll)

/** No Redis is named, whatever the environment of this test says. */
const unnamed = { REDIS_URL: undefined, REDIS_SENTINELS: undefined, REDIS_CLUSTER: undefined }
const start = (env: Record<string, string | undefined>, ...args: ReadonlyArray<string>) =>
  mainWith({ ...unnamed, ...env }, "start", "--backend", "redis", "--port", "0", ...args)

const childOf = (host: Main, name: string) =>
  descendants(host.pid).find(({ command }) => new RegExp(`instance --id ${name}\\b`).test(command))!.pid

const allGone = (processes: ReadonlyArray<Process>) =>
  until("the processes end", () => (processes.some(({ pid }) => isAlive(pid)) ? undefined : true))

/** Has files imported by tasks. */
const startImports = async (urls: ReadonlyArray<string>, count: number) => {
  const url = urls[0]!
  const fields = [{ name: "zip_code", type: "text", required: true }]
  assert.strictEqual((await request("POST", `${url}/collections`, { name: "zip", fields })).status, 204)
  for (const url of urls) {
    await until(`${url} knows the collection`, async () =>
      (await request("GET", `${url}/collections/zip`)).status === 200 ? true : undefined
    )
  }
  for (let i = 0; i < count; i++) {
    const params = { collection: "zip", file: "zipcodes.csv" }
    assert.strictEqual((await request("POST", `${url}/tasks`, { type: "import-csv", params })).status, 200)
  }
}

describe("npm run demo -- --backend redis", () => {
  it("plays every scenario across three processes and exits with 0", { timeout: 60_000 }, async () => {
    const demo = mainWith(unnamed, "demo", "--backend", "redis", "--instances", "3")
    await until("the instances listen", () => (demo.output.includes("a process each") ? true : undefined))
    const started = descendants(demo.pid)
    const instances = started.filter(({ command, parent }) => parent === demo.pid && command.includes("instance --id"))
    assert.strictEqual(instances.length, 3)
    assert.strictEqual(await demo.exited, 0, demo.output)
    assert.include(demo.output, "All 11 steps went as they should.")
    assert.notInclude(demo.output, "✗")
    await allGone(started)
  })

  it("leaves nothing behind on the Redis that is named", { timeout: 60_000 }, async () => {
    const keys = await Effect.runPromise(server.command("DBSIZE"))
    const demo = mainWith({ ...unnamed, REDIS_URL: server.url }, "demo", "--backend", "redis", "--instances", "2")
    assert.strictEqual(await demo.exited, 0, demo.output)
    assert.strictEqual(await Effect.runPromise(server.command("DBSIZE")), keys)
  })
})

describe("npm start -- --backend redis", () => {
  /** Ends the supervisor in the middle of imports; returns what is stored of them. */
  const endedDuringImports = async (app: string, signal: NodeJS.Signals) => {
    const host = start({ REDIS_URL: server.url }, "--app", app)
    const all = await urls(host, 3)
    const started = descendants(host.pid)
    await startImports(all, 6)
    await until("imports have begun", async () =>
      (await request("GET", `${all[1]}/tasks`)).body.some(
        (task: any) => task.status === "running" && task.progress.done > 0
      )
        ? true
        : undefined
    )
    host.kill(signal)
    const code = await host.exited
    await allGone(started)
    const tasks = (await Effect.runPromise(server.command("HVALS", `cohort-host:{${app}}:tasks`))) as Array<string>
    return { code, output: host.output, statuses: tasks.map((task) => JSON.parse(task).status as string) }
  }

  it("drains on Ctrl-C in the middle of imports, and stops", { timeout: 60_000 }, async () => {
    const { code, output, statuses } = await endedDuringImports("interrupted", "SIGINT")
    assert.strictEqual(code, 130, output)
    assert.match(output, /Stopping: .*\nStopped\.\n$/)
    // What ran has ended, or was given back.
    assert.strictEqual(statuses.length, 6)
    assert.notInclude(statuses, "running")
    assert.notInclude(statuses, "failed")
  })

  it("drains as well when the supervisor is killed", { timeout: 60_000 }, async () => {
    const { statuses } = await endedDuringImports("orphaned", "SIGKILL")
    assert.strictEqual(statuses.length, 6)
    assert.notInclude(statuses, "running")
    assert.notInclude(statuses, "failed")
  })

  it("a process that is killed comes back, and the others go on; a second Ctrl-C kills what does not stop", {
    timeout: 60_000
  }, async () => {
    const host = start({ REDIS_URL: server.url }, "--app", "kill")
    const all = await urls(host, 3)
    const [a, b, c] = all
    await startImports(all, 4)
    const killed = childOf(host, "b")
    process.kill(killed, "SIGKILL")
    await until("b is noticed", () => (host.output.includes("SIGKILL") ? true : undefined))
    for (const url of [a, c]) assert.strictEqual((await request("GET", `${url}/health`)).status, 200)
    const instance = await until("b listens again", () =>
      request("GET", `${b}/health`).then(
        ({ body }) => body.instance as string,
        () => undefined
      )
    )
    assert.match(instance, /^b-\w+\.2$/)
    await until("an import succeeds", async () =>
      (await request("GET", `${b}/tasks?status=succeeded`)).body.length > 0 ? true : undefined
    )

    const started = descendants(host.pid)
    const stuck = childOf(host, "c")
    process.kill(stuck, "SIGSTOP")
    try {
      host.kill("SIGINT")
      await allGone(started.filter(({ pid }) => pid !== stuck))
      assert.isTrue(isAlive(stuck))
      // Not at once: two signals at a time are one Ctrl-C.
      await sleep(700)
      host.kill("SIGINT")
      await allGone(started)
    } finally {
      if (isAlive(stuck)) process.kill(stuck, "SIGKILL")
    }
    assert.strictEqual(await host.exited, 130, host.output)
  })

  it("leaves no process behind when the supervisor is killed, a redis-server of its own included", {
    timeout: 60_000
  }, async () => {
    const temporary = mkdtempSync(path.join(tmpdir(), "cohort-test-"))
    try {
      const host = start({ TMPDIR: temporary }, "--instances", "2")
      await startImports(await urls(host, 2), 2)
      const started = descendants(host.pid)
      assert.isTrue(started.some(({ command }) => command.startsWith("redis-server")))
      assert.strictEqual(readdirSync(temporary).length, 1)
      // The password is on no command line.
      assert.notMatch(started.map(({ command }) => command).join("\n"), /requirepass|redis:\/\//)
      host.kill("SIGKILL")
      await host.exited
      await allGone(started)
      assert.deepStrictEqual(readdirSync(temporary), [])
    } finally {
      rmSync(temporary, { recursive: true })
    }
  })

  it("says in one line what is wrong", { timeout: 30_000 }, async () => {
    const bin = mkdtempSync(path.join(tmpdir(), "cohort-path-"))
    try {
      for (const shell of ["/bin/sh", "/usr/bin/sh"]) {
        if (existsSync(shell) && !existsSync(path.join(bin, "sh"))) symlinkSync(shell, path.join(bin, "sh"))
      }
      const wrong: ReadonlyArray<readonly [Main, RegExp]> = [
        [main("start", "--backend", "rabbit"), /^cohort: --backend: must be memory or redis, got "rabbit"\n$/],
        [start({ PATH: bin }), /^cohort: there is no redis-server on the PATH: .*\n$/],
        [start({ REDIS_URL: "nowhere" }), /^cohort: REDIS_URL: must be like .*\n$/],
        [
          start({ REDIS_URL: "redis://:s3cret@127.0.0.1:1", REDIS_TIMEOUT: "2 seconds" }),
          /^cohort: REDIS_URL: redis is unavailable: .*ECONNREFUSED.*\n$/
        ],
        [start({ REDIS_URL: server.url, REDIS_TIMEOUT: "soon" }), /^cohort: .*REDIS_TIMEOUT.*\n$/],
        [
          mainWith({ REDIS_URL: server.url }, "start", "--backend", "redis", "--port", String(server.port)),
          /^cohort: instance a: .*EADDRINUSE.*\n$/
        ]
      ]
      for (const [host, line] of wrong) {
        assert.strictEqual(await host.exited, 1, host.output)
        assert.match(host.output, line)
        assert.notInclude(host.output, "s3cret")
      }
    } finally {
      rmSync(bin, { recursive: true })
    }
  })
})
