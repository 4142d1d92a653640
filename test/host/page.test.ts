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
const publish = (app: string, payload: Schema.Json, ids: ReadonlyArray<string>) =>
  Effect.forEach(ids, (id) => EventQueue.publish(Job.make(channel, Schema.Json), payload, { id })).pipe(
    Effect.provide(Cohort.layerRedis({ app, url: server.url })),
    Effect.runPromise
  )

/** The dead letters that there are, oldest first. */
const lettersOf = async (url: string, limit = 200): Promise<ReadonlyArray<{ id: string; diedAt: string }>> =>
  (await request("GET", `${url}/console/api/dead-letters?channel=${channel}&offset=0&limit=${limit}`)).body

const focused = (page: Page) =>
  page.evaluate(
    "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
  ) as Promise<string>

/** Goes there by the tab key alone, in either direction. */
const tabTo = async (page: Page, name: string, key: "Tab" | "Shift+Tab" = "Tab") => {
  for (let i = 0; i < 300 && (await focused(page)) !== name; i++) await page.keyboard.press(key)
  assert.strictEqual(await focused(page), name)
}

/** Types the token, from the button that asks for it on. */
const unlock = async (page: Page) => {
  await page.getByRole("button", { name: "Unlock actions" }).focus()
  await page.keyboard.press("Enter")
  await page.keyboard.type(token)
  await page.keyboard.press("Enter")
  await page.getByRole("button", { name: "Lock actions", exact: true }).waitFor()
}

describe("the console", () => {
  it("shows the cluster, redrives by keyboard alone, and runs nothing that a payload says", { timeout }, async () => {
    const app = "console"
    const host = start({ REDIS_URL: server.url, COHORT_ADMIN_TOKEN: token }, "--app", app)
    const [a, b] = await urls(host, 3)
    const attack = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
    assert.strictEqual((await bury(a!, "nowhere")).status, 200)
    await publish(app, { attack }, [attack])
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
    const task = (await lettersOf(b!)).find(({ id }) => id !== attack)!.id
    const { attempts } = (await request("GET", `${b}/tasks/${task}`)).body
    await tabTo(page, `Redrive ${task}`)
    await page.keyboard.press("Enter")
    await says(page, "said", /1 redriven/)
    await until("it ran again, and died again", async () => {
      const { body } = await request("GET", `${b}/tasks/${task}`)
      return body.attempts > attempts && body.status === "failed" ? true : undefined
    })
    await says(page, "events", /dead/)

    // Discarding asks first.
    await page.getByRole("button", { name: `Discard ${attack}` }).click()
    assert.include(await textOf(page, "sure-dialog"), attack)
    assert.strictEqual(await page.locator("#sure-dialog img, #sure-dialog script").count(), 0)
    await page.locator("#sure-ok").click()
    await says(page, "said", /1 discarded/)
    assert.isTrue((await lettersOf(a!)).every(({ id }) => id !== attack))

    // What is counted is the cluster's: this page is of b.
    for (let i = 0; i < 3; i++) await request("GET", `${a}/auth/policy`)
    await says(page, "caches", /auth:policy\s+[1-9]/)
    await bury(a!, "elsewhere")
    const published = page.locator(`svg[aria-label^="${channel} published per second"]`)
    await until("what a published is on the chart of b", async () =>
      /at most [0-9.]*[1-9]/.test((await published.getAttribute("aria-label"))!) ? true : undefined
    )
    assert.deepStrictEqual(foreign, [])
    assert.strictEqual(await page.title(), `${app} – Cohort`)
    await page.close()
  })

  it("pages through dead letters, and redrives and discards many of them, by keyboard alone", { timeout }, async () => {
    const app = "bulk"
    const host = start({ REDIS_URL: server.url, COHORT_ADMIN_TOKEN: token }, "--app", app, "--instances", "1")
    const [url] = await urls(host, 1)
    const ids = Array.from({ length: 120 }, (_, i) => `<b>${String(i).padStart(3, "0")}</b>`)
    await publish(app, { nobody: "reads this" }, ids)
    await until("all are dead", async () => ((await lettersOf(url!)).length === ids.length ? true : undefined))
    const page = await visit(url!)
    const shown = async () => {
      // A row that says that there are none, or none yet, has one cell.
      await page.locator("#letters tbody tr td:nth-child(2)").first().waitFor()
      return page.evaluate("[...document.querySelectorAll('#letters tbody tr')].map((row) => row.cells[1].textContent)")
    }
    const range = (what: string) => says(page, "range", new RegExp(`^${what}, oldest first$`))
    const press = (...keys: ReadonlyArray<string>) =>
      keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve())

    // Three pages, each letter on one, the oldest first.
    await range("1–50 of 120")
    assert.isFalse(await page.getByRole("button", { name: "Earlier" }).isVisible())
    const pages = [await shown()]
    await tabTo(page, "Later")
    await press("Enter")
    await range("51–100 of 120")
    pages.push(await shown())
    await press("Enter")
    await range("101–120 of 120")
    pages.push(await shown())
    assert.deepStrictEqual(
      pages.flat(),
      (await lettersOf(url!)).map(({ id }) => id)
    )
    assert.sameMembers(pages.flat(), ids)
    assert.strictEqual(await page.locator("#letters b").count(), 0)
    // There is no later page; the focus has not gone with its button.
    assert.strictEqual(await focused(page), "Earlier")

    // All of the last page: Escape leaves them, Enter on the button does not.
    await unlock(page)
    await tabTo(page, "Select all that are shown")
    await press("Space")
    await tabTo(page, "Discard selected (20)", "Shift+Tab")
    await press("Enter")
    await says(page, "sure-dialog", /Discard 20 dead letters\?/)
    await press("Escape")
    assert.strictEqual((await lettersOf(url!)).length, 120)
    assert.strictEqual(await focused(page), "Discard selected (20)")
    await press("Enter")
    await tabTo(page, "Discard")
    await press("Enter")
    await says(page, "said", /20 discarded/)
    await range("51–100 of 100")

    // Two, on two pages: they die again, as the latest.
    const [last, first] = [(pages[1] as Array<string>)[49]!, (pages[0] as Array<string>)[0]!]
    await tabTo(page, `Select ${last}`)
    await press("Space")
    await tabTo(page, "Earlier", "Shift+Tab")
    await press("Enter")
    await range("1–50 of 100")
    await tabTo(page, `Select ${first}`)
    await press("Space")
    await tabTo(page, "Redrive selected (2)", "Shift+Tab")
    await press("Enter")
    await says(page, "said", /2 redriven/)
    await until("they die again", async () => {
      const letters = (await lettersOf(url!)).map(({ id }) => id)
      return letters.length === 100 && [first, last].every((id) => letters.indexOf(id) >= 98) ? true : undefined
    })

    // All: asked first, whatever is to be done.
    await range("1–50 of 100")
    const before = new Set((await lettersOf(url!)).map(({ diedAt }) => diedAt))
    await tabTo(page, "Redrive all")
    await press("Enter")
    await says(page, "sure-dialog", /Redrive all 100 dead letters of \S+\?/)
    await tabTo(page, "Redrive")
    await press("Enter")
    await says(page, "said", /100 redriven/)
    await until("all die again", async () => {
      const letters = await lettersOf(url!)
      return letters.length === 100 && letters.every(({ diedAt }) => !before.has(diedAt)) ? true : undefined
    })
    await range("1–50 of 100")
    await tabTo(page, "Discard all")
    await press("Enter")
    await says(page, "sure-dialog", /Discard all 100 dead letters/)
    await tabTo(page, "Discard")
    await press("Enter")
    await says(page, "said", /100 discarded/)
    await says(page, "letters", /None/)
    assert.deepStrictEqual(await lettersOf(url!), [])
    await page.close()
  })

  it("refuses actions without the token, with a wrong one, and from other pages", { timeout }, async () => {
    const post = async (url: string, what: string, ids: unknown, headers: Record<string, string>) =>
      (await fetch(`${url}/console/api/${what}`, { method: "POST", body: JSON.stringify({ channel, ids }), headers }))
        .status
    const json = { "content-type": "application/json" }
    const right = { ...json, authorization: `Bearer ${token}` }
    const host = start({ REDIS_URL: server.url, COHORT_ADMIN_TOKEN: token }, "--app", "refuses", "--instances", "1")
    const [url] = await urls(host, 1)
    const ids = ["one", "two", "three"]
    await publish("refuses", "nothing that runs", ids)
    await until("all are dead", async () => ((await lettersOf(url!)).length === 3 ? true : undefined))
    const letters = await lettersOf(url!)
    for (const what of ["redrive", "discard"]) {
      for (const chosen of ["all", ids, ["one"]]) {
        const refused = (headers: Record<string, string>) => post(url!, what, chosen, headers)
        assert.strictEqual(await refused(json), 401)
        assert.strictEqual(await refused({ ...json, authorization: "Bearer wrong" }), 401)
        assert.strictEqual(await refused({ ...json, cookie: `authorization=Bearer ${token}` }), 401)
        assert.strictEqual(await refused({ ...right, origin: "http://elsewhere.example" }), 403)
        assert.strictEqual(await refused({ ...right, origin: "null" }), 403)
        assert.strictEqual(await refused({ ...right, "sec-fetch-site": "cross-site" }), 403)
        assert.strictEqual(await refused({ ...right, "content-type": "text/plain" }), 415)
      }
      assert.strictEqual(await post(url!, what, "some", right), 400)
      assert.strictEqual(await post(url!, what, [1], right), 400)
    }
    assert.deepStrictEqual(await lettersOf(url!), letters)
    assert.strictEqual(await post(url!, "discard", ["one"], right), 200)
    assert.strictEqual(await post(url!, "discard", "all", { ...right, origin: url! }), 200)
    assert.deepStrictEqual(await lettersOf(url!), [])

    const without = start(
      { REDIS_URL: server.url, COHORT_ADMIN_TOKEN: undefined },
      ...["--app", "readonly", "--instances", "1"]
    )
    const [open] = await urls(without, 1)
    for (const what of ["redrive", "discard"]) assert.strictEqual(await post(open!, what, "all", right), 403)
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
    const interrupted = await until("b works", async () => {
      const { runningTasks } = (await request("GET", `${b}/health`)).body
      return runningTasks.length > 0 ? (runningTasks as ReadonlyArray<string>) : undefined
    })
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
    // What the killed one ran, another has run, from the beginning to the end; no row is missing.
    for (const task of (await request("GET", `${a}/tasks`)).body) {
      assert.notStrictEqual(task.instance, id)
      assert.strictEqual(task.progress.done, task.progress.total)
      if (interrupted.includes(task.id)) assert.isAtLeast(task.attempts, 2)
    }
    const { members } = await until("the queue is empty, and the killed one holds nothing", async () => {
      const { body } = await request("GET", `${a}/console/api/state`)
      const { dead, delayed, inFlight, ready } = body.channels[0].depth.value
      const held = body.locks.value.some(({ holder }: { holder: string }) => holder === id)
      return !held && dead + delayed + inFlight + ready === 0 ? body : undefined
    })
    assert.notInclude(
      members.map((member: { id: string }) => member.id),
      id
    )
    await page.close()
  })
})
