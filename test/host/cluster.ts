/** What holds for the host on every backend that runs a process for each instance. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { afterEach, assert, describe, it } from "@effect/vitest"
import { descendants, isAlive, killAll, type Main, mainWith, type Process, request, until, urls } from "./support.ts"

export interface Setup {
  readonly backend: "redis" | "amqp"
  /** Servers of the test's own, as the environment names them; available when tests run. */
  readonly named: () => Record<string, string>
  /** What the host starts where none is named: the command of each. */
  readonly binaries: ReadonlyArray<RegExp>
  /** The tasks that an app has stored there, as JSON. */
  readonly tasks: (app: string) => Promise<ReadonlyArray<string>>
  /** Everything that is stored there. */
  readonly stored: () => Promise<ReadonlyArray<string>>
}

/** No server is named, whatever the environment of this test says. */
const unnamed = {
  REDIS_URL: undefined,
  REDIS_SENTINELS: undefined,
  REDIS_CLUSTER: undefined,
  AMQP_URL: undefined,
  AMQP_NODES: undefined,
  DATABASE_URL: undefined
}

export const startOn =
  (backend: string) =>
  (env: Record<string, string | undefined>, ...args: ReadonlyArray<string>): Main =>
    mainWith(
      { ...unnamed, ...env },
      "start",
      "--backend",
      backend,
      ...(args.includes("--port") ? [] : ["--port", "0"]),
      ...args
    )

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

const timeout = 90_000

export const suite = ({ backend, binaries, named, stored, tasks }: Setup) => {
  const start = startOn(backend)
  afterEach(killAll)

  describe(`npm run demo -- --backend ${backend}`, () => {
    it("plays every scenario across three processes and exits with 0", { timeout }, async () => {
      const demo = mainWith(unnamed, "demo", "--backend", backend, "--instances", "3")
      await until("the instances listen", () => (demo.output.includes("a process each") ? true : undefined))
      const started = descendants(demo.pid)
      const instances = started.filter(
        ({ command, parent }) => parent === demo.pid && command.includes("instance --id")
      )
      assert.strictEqual(instances.length, 3)
      assert.strictEqual(await demo.exited, 0, demo.output)
      assert.include(demo.output, "All 11 steps went as they should.")
      assert.notInclude(demo.output, "✗")
      await allGone(started)
    })

    it("leaves nothing behind on servers that are named", { timeout }, async () => {
      const before = await stored()
      const demo = mainWith({ ...unnamed, ...named() }, "demo", "--backend", backend, "--instances", "2")
      assert.strictEqual(await demo.exited, 0, demo.output)
      assert.deepStrictEqual(await stored(), before)
    })
  })

  describe(`npm start -- --backend ${backend}`, () => {
    /** Ends the supervisor in the middle of imports; returns what is stored of them. */
    const endedDuringImports = async (app: string, signal: NodeJS.Signals) => {
      const host = start(named(), "--app", app)
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
      const statuses = (await tasks(app)).map((task) => JSON.parse(task).status as string)
      return { code, output: host.output, statuses }
    }

    it("drains on Ctrl-C in the middle of imports, and stops", { timeout }, async () => {
      const { code, output, statuses } = await endedDuringImports("interrupted", "SIGINT")
      assert.strictEqual(code, 130, output)
      assert.match(output, /Stopping: .*\nStopped\.\n$/)
      // What ran has ended, or was given back.
      assert.strictEqual(statuses.length, 6)
      assert.notInclude(statuses, "running")
      assert.notInclude(statuses, "failed")
    })

    it("drains as well when the supervisor is killed", { timeout }, async () => {
      const { statuses } = await endedDuringImports("orphaned", "SIGKILL")
      assert.strictEqual(statuses.length, 6)
      assert.notInclude(statuses, "running")
      assert.notInclude(statuses, "failed")
    })

    it("a process that is killed comes back, and the others go on; a second Ctrl-C kills what does not stop", {
      timeout
    }, async () => {
      const host = start(named(), "--app", "kill")
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

    describe("on servers of its own", () => {
      /** Runs it with a temporary directory of its own. */
      const privately = async (test: (host: Main, temporary: string) => Promise<void>) => {
        const temporary = mkdtempSync(path.join(tmpdir(), "cohort-test-"))
        try {
          // What fails while it drains without a server, fails sooner so.
          const env = { TMPDIR: temporary, REDIS_TIMEOUT: "2 seconds", AMQP_TIMEOUT: "2 seconds" }
          await test(start(env, "--instances", "2"), temporary)
        } finally {
          killAll()
          rmSync(temporary, { recursive: true, maxRetries: 5 })
        }
      }

      it("leaves no process behind when it is killed, the servers included", { timeout }, () =>
        privately(async (host, temporary) => {
          await startImports(await urls(host, 2), 2)
          const started = descendants(host.pid)
          for (const binary of binaries) assert.isTrue(started.some(({ command }) => binary.test(command)))
          assert.isAtLeast(readdirSync(temporary).length, 1)
          // Passwords are on no command line.
          assert.notMatch(
            started.map(({ command }) => command).join("\n"),
            /requirepass|default_pass|(redis|amqp):\/\//
          )
          host.kill("SIGKILL")
          await host.exited
          await allGone(started)
          await until("the directories are removed", () => (readdirSync(temporary).length === 0 ? true : undefined))
        })
      )

      it("stops, and says why, when a server ends", { timeout }, () =>
        privately(async (host, temporary) => {
          await urls(host, 2)
          const started = descendants(host.pid)
          const server = started.find(({ command }) => binaries[0]!.test(command))!
          process.kill(server.pid, "SIGKILL")
          assert.strictEqual(await host.exited, 1, host.output)
          assert.match(host.output, /^cohort: \w+-server ended: exit code 137$/m, host.output)
          await allGone(started)
          assert.deepStrictEqual(readdirSync(temporary), [])
        })
      )
    })
  })
}
