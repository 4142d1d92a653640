/** What operates the host: probes, worker modes, traces. */
import { type ChildProcess, spawn } from "node:child_process"
import { createServer, type IncomingMessage } from "node:http"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import { startOn } from "./cluster.ts"
import { killAll, mainWith, request, until, urls } from "./support.ts"

const scope = Effect.runSync(Scope.make())
let server: RedisServer.RedisServer

beforeAll(async () => {
  server = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
afterEach(killAll)

const timeout = 90_000
const start = startOn("redis")

/** Status and body of a probe; `undefined` while nobody answers. */
const probe = (url: string) => request("GET", url).catch(() => undefined)

const becomes = (url: string, status: number) =>
  until(`${url} answers ${status}`, async () => {
    const answer = await probe(url)
    return answer?.status === status ? answer.body : undefined
  })

describe("probes", () => {
  it("follow the connection to Redis, and say why", { timeout }, async () => {
    const host = start({ REDIS_URL: server.url, REDIS_TIMEOUT: "1 second" }, "--app", "probes", "--instances", "2")
    for (const url of await urls(host, 2)) assert.strictEqual((await becomes(`${url}/readyz`, 200)).phase, "running")
    const [url] = await urls(host, 2)
    await Effect.runPromise(server.kill)
    const { components, live } = await becomes(`${url}/readyz`, 503)
    assert.isTrue(live)
    const { detail, status } = components.find(({ component }: { component: string }) => component === "redis")
    assert.strictEqual(status, "down")
    assert.match(detail, /(commands|subscriptions) (re)?connecting/)
    // The plugins' stores have a connection of their own.
    assert.sameMembers(
      components.flatMap(({ component }: { component: string }) => (component.startsWith("redis") ? [component] : [])),
      ["redis", "redis (data)"]
    )
    assert.strictEqual((await becomes(`${url}/livez`, 200)).ready, false)
    await Effect.runPromise(server.start)
    await becomes(`${url}/readyz`, 200)
  })

  it("say first that an instance stops, then it does", { timeout }, async () => {
    const host = mainWith({ COHORT_DRAIN_DELAY: "3 seconds" }, "start", "--instances", "1", "--port", "0")
    const [url] = await urls(host, 1)
    await becomes(`${url}/readyz`, 200)
    host.kill("SIGTERM")
    assert.strictEqual((await becomes(`${url}/readyz`, 503)).phase, "stopping")
    assert.strictEqual((await probe(`${url}/tasks`))?.status, 200, "it serves until then")
    await host.exited
    assert.isUndefined(await probe(`${url}/readyz`))
  })

  it("tell Prometheus what was counted", { timeout }, async () => {
    const host = mainWith({}, "start", "--instances", "1", "--port", "0")
    const [url] = await urls(host, 1)
    await request("GET", `${url}/auth/policy`)
    const text = await until("the count", async () => {
      const text = await (await fetch(`${url}/metrics`)).text()
      return text.includes("cohort_cache_misses") ? text : undefined
    })
    // Trouble that there was not is told as well: what comes first shows as growth.
    for (const name of ["cohort_lock_leases_lost", "cohort_pubsub_gaps", "cohort_sync_resync_failures"]) {
      assert.match(text, new RegExp(`^${name}(\\{.*\\})? \\d+$`, "m"))
    }
    assert.match(text, /^cohort_cache_misses\{.*messaging_client_id="a".*\} [1-9]\d*$/m)
  })
})

describe("WORKER_MODE", () => {
  it("without requests serves probes only; one that is none is refused by name", { timeout }, async () => {
    const host = mainWith({ WORKER_MODE: "async-task:process" }, "start", "--instances", "1", "--port", "0")
    const [url] = await urls(host, 1)
    await becomes(`${url}/readyz`, 200)
    assert.strictEqual((await fetch(`${url}/tasks`)).status, 404)
    const wrong = mainWith({ WORKER_MODE: "!a" }, "start", "--port", "0")
    assert.strictEqual(await wrong.exited, 1)
    assert.match(wrong.output, /^cohort: WORKER_MODE: must be empty, or/)
  })
})

interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly name: string
  /** The instance that made it. */
  readonly by: string
}

/** Takes the spans that OpenTelemetry exporters send. */
const collector = async () => {
  const spans: Array<Span> = []
  const read = async (message: IncomingMessage) => {
    let text = ""
    for await (const chunk of message) text += chunk
    return text
  }
  const http = createServer(async (message, response) => {
    const text = await read(message)
    if (message.url === "/v1/traces") {
      for (const { resource, scopeSpans } of JSON.parse(text).resourceSpans) {
        const id = resource.attributes.find(({ key }: { key: string }) => key === "service.instance.id")
        for (const { spans: sent } of scopeSpans) {
          for (const span of sent) spans.push({ ...span, by: id.value.stringValue })
        }
      }
    }
    response.writeHead(200, { "content-type": "application/json" }).end("{}")
  })
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve))
  return { spans, url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`, close: () => http.close() }
}

describe("telemetry", () => {
  const processes: Array<ChildProcess> = []
  afterEach(() => {
    for (const child of processes.splice(0)) child.kill("SIGKILL")
  })

  it("one trace goes through publish, handler and nested publish in two processes", { timeout }, async () => {
    const { close, spans, url } = await collector()
    try {
      const run = (role: string) => {
        const worker = path.join(import.meta.dirname, "trace-worker.ts")
        const child = spawn(process.execPath, [worker, role, server.url, `trace-${process.pid}`], {
          env: { ...process.env, OTEL_EXPORTER_OTLP_ENDPOINT: url },
          stdio: ["ignore", "pipe", "inherit"]
        })
        processes.push(child)
        return child
      }
      const worker = run("worker")
      await new Promise<void>((resolve) => worker.stdout!.once("data", () => resolve()))
      const publisher = run("publisher")
      await new Promise((resolve) => publisher.once("close", resolve))
      worker.kill("SIGTERM")
      const chain = ["request", "EventQueue.publish", "EventQueue.process", "PubSub.publish", "PubSub.handle"]
      const found = await until("all spans", () => {
        const found = chain.map((name) => {
          const trace = spans.find((span) => span.name === "request")?.traceId
          return spans.find((span) => span.name === name && span.traceId === trace)
        })
        return found.every((span) => span !== undefined) ? found : undefined
      })
      assert.deepStrictEqual(
        found.map(({ by }) => by),
        ["publisher", "publisher", "worker", "worker", "publisher"]
      )
      for (const [i, span] of found.entries()) {
        if (i > 0) assert.strictEqual(span.parentSpanId, found[i - 1]!.spanId, span.name)
      }
    } finally {
      close()
    }
  })
})
