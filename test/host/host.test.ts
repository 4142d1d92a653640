/** The host as its users run it: a process of its own. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { afterEach, assert, describe, it } from "@effect/vitest"
import { killAll, main, mainWith, request, until, urls } from "./support.ts"

afterEach(killAll)

describe("npm run demo", () => {
  for (const instances of [2, 3]) {
    it(`plays every scenario on ${instances} instances and exits with 0`, { timeout: 60_000 }, async () => {
      const demo = main("demo", "--instances", String(instances))
      assert.strictEqual(await demo.exited, 0, demo.output)
      assert.include(demo.output, "All 11 steps went as they should.")
      assert.notInclude(demo.output, "✗")
    })
  }

  it("exits with 1, saying which step, when an outcome is wrong", { timeout: 90_000 }, async () => {
    const files = mkdtempSync(path.join(tmpdir(), "cohort-demo-"))
    try {
      // A data set of one row: what the demo imports is not what it should be.
      writeFileSync(path.join(files, "zipcodes.csv"), "zip_code,latitude,longitude,city,state\n1,2,3,A,B\n")
      const demo = main("demo", "--files", files)
      assert.strictEqual(await demo.exited, 1, demo.output)
      assert.include(demo.output, "✗ a starts 8 tasks for zipcodes.csv")
      assert.include(demo.output, "cohort: ")
    } finally {
      rmSync(files, { recursive: true })
    }
  })
})

describe("npm start", () => {
  it("refuses a number of instances that makes no sense", async () => {
    for (const [command, count] of [
      ["start", "0"],
      ["start", "-1"],
      ["start", "x"],
      ["demo", "1"]
    ] as const) {
      const host = main(command, "--instances", count)
      assert.strictEqual(await host.exited, 1)
      assert.include(host.output, "--instances")
    }
  })

  it("serves the API of every instance, and says which field of a request is wrong", async () => {
    const host = main("start", "--port", "0")
    const all = await urls(host, 3)
    for (const url of all) {
      assert.strictEqual((await request("GET", `${url}/health`)).body.status, "ok")
      assert.include(await (await fetch(`${url}/docs`)).text(), "<html")
      const { body } = await request("GET", `${url}/openapi.json`)
      assert.includeMembers(Object.keys(body.paths), ["/auth/policy", "/tasks", "/dead-letters", "/health"])
    }
    const wrong = await request("PUT", `${all[0]}/auth/policy`, { tokenSeconds: 0, maxSessions: 1 })
    assert.strictEqual(wrong.status, 400)
    assert.deepStrictEqual(wrong.body.errors[0].path, ["payload", "tokenSeconds"])
    assert.strictEqual((await request("GET", `${all[0]}/tasks/none`)).status, 404)
    assert.strictEqual((await request("POST", `${all[0]}/tasks`, { type: "none", params: {} })).status, 400)
    host.kill("SIGINT")
    assert.strictEqual(await host.exited, 130)
  })

  it("drains on Ctrl-C in the middle of imports, and stops", { timeout: 60_000 }, async () => {
    const host = main("start", "--port", "0")
    const [url] = await urls(host, 3)
    const fields = [{ name: "zip_code", type: "text", required: true }]
    assert.strictEqual((await request("POST", `${url}/collections`, { name: "zip", fields })).status, 204)
    for (let i = 0; i < 3; i++) {
      const params = { collection: "zip", file: "zipcodes.csv" }
      assert.strictEqual((await request("POST", `${url}/tasks`, { type: "import-csv", params })).status, 200)
    }
    await until("an import has begun", async () => {
      const { body } = await request("GET", `${url}/tasks`)
      return body.some((task: any) => task.status === "running" && task.progress.done > 0) ? true : undefined
    })
    host.kill("SIGINT")
    assert.strictEqual(await host.exited, 130)
    assert.match(host.output, /Stopping: .*\nStopped\.\n$/)
  })

  it("stops its instances at the same time, and at once on a second Ctrl-C", { timeout: 60_000 }, async () => {
    /** How many milliseconds it takes to stop. */
    const stopped = async (drainDelay: string, signals: number) => {
      const host = mainWith({ COHORT_DRAIN_DELAY: drainDelay }, "start", "--port", "0")
      await urls(host, 3)
      const since = performance.now()
      for (let i = 0; i < signals; i++) {
        // Two signals at a time are one Ctrl-C.
        if (i > 0) await sleep(700)
        host.kill("SIGINT")
      }
      assert.strictEqual(await host.exited, 130)
      return performance.now() - since
    }
    const [once, twice] = await Promise.all([stopped("8 seconds", 1), stopped("10 minutes", 2)])
    assert.isAtLeast(once, 8_000)
    assert.isBelow(once, 16_000)
    assert.isBelow(twice, 8_000)
  })

  it("says in one line why it cannot start", async () => {
    const first = main("start", "--port", "0", "--instances", "1")
    const [url] = await urls(first, 1)
    const second = main("start", "--port", new URL(url!).port, "--instances", "1")
    assert.strictEqual(await second.exited, 1)
    assert.match(second.output, /^cohort: port \d+ of [\d.]+ is taken: .*\n$/)
  })
})
