/** The console in a headless Chromium, on three processes that share Redis. */
import { existsSync } from "node:fs"
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type Browser, chromium, type Page } from "playwright-core"
import * as Cohort from "../../src/layers/Cohort.ts"
import { EventQueue, Job } from "../../src/services/index.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { ensureInstalled } from "../servers/ServerProcess.ts"
import { startOn } from "./cluster.ts"
import { descendants, killAll, request, until, urls } from "./support.ts"

const scope = Effect.runSync(Scope.make())
const binary = () => ["/usr/bin/chromium", "/opt/homebrew/bin/chromium"].find((path) => existsSync(path))
const start = startOn("redis")
const timeout = 120_000
const token = "t0ken-of-the-test"
const channel = "async-task-manager:task"
let server: RedisServer.RedisServer
let browser: Browser

beforeAll(async () => {
  const executablePath = ensureInstalled("chromium", "chromium", binary)
  server = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
  // With a profile of its own, which goes with it.
  browser = await chromium.launch({
    executablePath,
    args: [
      ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
      ...["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    ],
    timeout: 60_000
  })
}, 300_000)
afterEach(killAll)
afterAll(async () => {
  await browser?.close()
  await Effect.runPromise(Scope.close(scope, Exit.void))
}, 60_000)

const visit = async (url: string): Promise<Page> => {
  const page = await browser.newPage()
  page.setDefaultTimeout(45_000)
  await page.goto(`${url}/`)
  await page.getByText("live", { exact: true }).waitFor()
  return page
}

/** As it is drawn: cells of a row, and rows, are apart. */
const textOf = (page: Page, id: string) =>
  page.evaluate(`document.getElementById(${JSON.stringify(id)}).innerText`) as Promise<string>
const says = (page: Page, id: string, what: RegExp) =>
  until(`#${id} says ${what}`, async () => ((await textOf(page, id)).match(what) !== null ? true : undefined))

/** A task whose handler refuses its parameters: a dead letter. */
const bury = (url: string, collection: string) =>
  request("POST", `${url}/tasks`, { type: "import-csv", params: { collection, file: "zipcodes.csv" } })

/** Puts jobs that nobody can run on the task channel, from a process that is none of the cluster's. */
const publish = (app: string, channel: string, payload: Schema.Json, id: string) =>
  EventQueue.publish(Job.make(channel, Schema.Json), payload, { id }).pipe(
    Effect.provide(Cohort.layerRedis({ app, url: server.url })),
    Effect.runPromise
  )

describe("the console", () => {
  it("shows the cluster, redrives by keyboard alone, and runs nothing that a payload says", { timeout }, async () => {
    const app = "console"
    const host = start({ REDIS_URL: server.url, COHORT_ADMIN_TOKEN: token }, "--app", app)
    const [a, b] = await urls(host, 3)
    const attack = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
    assert.strictEqual((await bury(a!, "nowhere")).status, 200)
    await publish(app, channel, { attack }, attack)
    const page = await visit(b!)
    const foreign: Array<string> = []
    page.on("request", (request) => {
      if (!request.url().startsWith(b!)) foreign.push(request.url())
    })
    await says(page, "instances", /^(?=[\s\S]*\ba-)(?=[\s\S]*\bb-\w+ \(this one\))(?=[\s\S]*\bc-)/)
    await says(page, "channels", /async-task-manager:task[\s\S]*\w-\w+, \w-\w+, \w-\w+/)
    await says(page, "locks", /singleton\S*\s+[abc]-\w+\s+\d+/)
    await says(page, "caches", /auth:policy/)
    await says(page, "sync", /data-source-main[\s\S]*in sync/)
    await says(page, "health", /redis\s+up/)
    await says(page, "tiles", /ready/)
    await says(page, "letters", /Failure|failure|Undecodable|undecodable/i)
    await until("both are dead", async () =>
      (await page.locator("#letters tbody tr").count()) === 2 ? true : undefined
    )

    // The attack is there to read, and is no element.
    const details = page.locator("#letters details", { hasText: "onerror" })
    await details.locator("summary").click()
    assert.include(await details.textContent(), "onerror")
    assert.strictEqual(await page.locator("#letters img, #letters script").count(), 0)
    assert.notStrictEqual(await page.title(), "owned")
    assert.strictEqual(await page.getByRole("button", { name: "Redrive all" }).isVisible(), false)

    // A wrong token first; then keys only, from the top of the page.
    await page.getByRole("button", { name: "Unlock actions" }).focus()
    await page.keyboard.press("Enter")
    await page.keyboard.type("wrong")
    await page.keyboard.press("Enter")
    await says(page, "token-wrong", /missing or wrong/)
    await page.keyboard.type(token)
    await page.keyboard.press("Enter")
    await page.getByRole("button", { name: "Lock actions", exact: true }).waitFor()
    const { body: letters } = await request("GET", `${b}/console/api/dead-letters?channel=${channel}&offset=0&limit=50`)
    const task = letters.find(({ id }: { id: string }) => id !== attack).id as string
    const { attempts } = (await request("GET", `${b}/tasks/${task}`)).body
    const focused = () => page.evaluate("document.activeElement.getAttribute('aria-label')")
    for (let i = 0; i < 60 && (await focused()) !== `Redrive ${task}`; i++) await page.keyboard.press("Tab")
    assert.strictEqual(await focused(), `Redrive ${task}`)
    await page.keyboard.press("Enter")
    await says(page, "said", /1 redriven/)
    await until("it ran again, and died again", async () => {
      const { body } = await request("GET", `${b}/tasks/${task}`)
      return body.attempts > attempts && body.status === "failed" ? true : undefined
    })
    await says(page, "events", /dead/)

    // Discarding asks first.
    await page.getByRole("button", { name: `Discard ${attack}` }).click()
    await page.locator("#sure-ok").click()
    await says(page, "said", /1 discarded/)
    await until("it is gone", async () => {
      const { body } = await request("GET", `${a}/console/api/dead-letters?channel=${channel}&offset=0&limit=50`)
      return body.every(({ id }: { id: string }) => id !== attack) ? true : undefined
    })
    assert.deepStrictEqual(foreign, [])
    assert.strictEqual(await page.title(), `${app} – Cohort`)
    await page.close()
  })

  it("refuses actions without the token, with a wrong one, and from other pages", { timeout }, async () => {
    const body = JSON.stringify({ channel, ids: "all" })
    const post = async (url: string, headers: Record<string, string>) =>
      (await fetch(`${url}/console/api/redrive`, { method: "POST", body, headers })).status
    const json = { "content-type": "application/json" }
    const right = { ...json, authorization: `Bearer ${token}` }
    const host = start({ REDIS_URL: server.url, COHORT_ADMIN_TOKEN: token }, "--app", "refuses", "--instances", "1")
    const [url] = await urls(host, 1)
    assert.strictEqual(await post(url!, right), 200)
    assert.strictEqual(await post(url!, { ...right, origin: url! }), 200)
    assert.strictEqual(await post(url!, json), 401)
    assert.strictEqual(await post(url!, { ...json, authorization: "Bearer wrong" }), 401)
    assert.strictEqual(await post(url!, { ...right, origin: "http://elsewhere.example" }), 403)
    assert.strictEqual(await post(url!, { ...right, origin: "null" }), 403)
    assert.strictEqual(await post(url!, { ...right, "sec-fetch-site": "cross-site" }), 403)
    assert.strictEqual(await post(url!, { ...right, "content-type": "text/plain" }), 415)

    const without = start(
      { REDIS_URL: server.url, COHORT_ADMIN_TOKEN: undefined },
      ...["--app", "readonly", "--instances", "1"]
    )
    const [open] = await urls(without, 1)
    assert.strictEqual(await post(open!, right), 403)
    const page = await visit(open!)
    assert.isTrue(await page.getByText("read-only", { exact: true }).isVisible())
    assert.isFalse(await page.getByRole("button", { name: "Unlock actions" }).isVisible())
    await page.close()
  })

  it("shows within seconds that an instance was killed under load; nothing is lost, work goes on", {
    timeout
  }, async () => {
    const host = start({ REDIS_URL: server.url }, "--app", "killed")
    const [a, b] = await urls(host, 3)
    const fields = [{ name: "zip_code", type: "text", required: true }]
    assert.strictEqual((await request("POST", `${a}/collections`, { name: "zip", fields })).status, 204)
    for (const url of await urls(host, 3)) {
      await until(`${url} knows the collection`, async () =>
        (await request("GET", `${url}/collections/zip`)).status === 200 ? true : undefined
      )
    }
    const page = await visit(a!)
    const id = (await request("GET", `${b}/health`)).body.instance as string
    await says(page, "instances", new RegExp(`${id}\\s+alive`))
    const count = 6
    for (let i = 0; i < count; i++) {
      const params = { collection: "zip", file: "zipcodes.csv" }
      assert.strictEqual((await request("POST", `${a}/tasks`, { type: "import-csv", params })).status, 200)
    }
    await until("b works", async () =>
      (await request("GET", `${b}/health`)).body.runningTasks.length > 0 ? true : undefined
    )
    const killed = descendants(host.pid).find(({ command }) => command.includes(`instance --id ${id}`))!
    process.kill(killed.pid, "SIGKILL")
    const since = performance.now()
    await says(page, "events", new RegExp(`instance ${id} (is silent|went)`))
    const noticed = performance.now() - since
    await says(page, "events", new RegExp(`instance ${id} went`))
    await says(page, "instances", new RegExp(`${id}\\.2\\s+alive`))
    console.info(`killed ${id}: on the page after ${(noticed / 1_000).toFixed(1)} s`)
    await until("every task has ended well", async () => {
      const { body } = await request("GET", `${a}/tasks?status=succeeded`)
      return body.length === count ? true : undefined
    })
    assert.strictEqual((await request("GET", `${a}/tasks?status=failed`)).body.length, 0)
    await page.close()
  })
})
