/** What the commands say to whoever asks for what cannot be: one line that names it, and no more than that. */
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { afterEach, assert, describe, it } from "@effect/vitest"
import { killAll, mainWith, until } from "./support.ts"

const nothing = {
  COHORT_BACKEND: undefined,
  COHORT_CACHE: undefined,
  COHORT_LOCK: undefined,
  COHORT_QUEUE: undefined,
  COHORT_PUBSUB: undefined,
  DATABASE_URL: undefined
}

const refuses = async (env: Record<string, string | undefined>, args: string, output: RegExp) => {
  const run = mainWith({ ...nothing, ...env }, ...args.split(" ").filter((arg) => arg !== ""))
  assert.strictEqual(await run.exited, 1, run.output)
  assert.match(run.output, output)
}

describe("a command that is refused says in a line", { timeout: 60_000 }, () => {
  afterEach(killAll)

  for (const [args, output] of [
    [
      "demo --instances 1",
      /^cohort demo: .*--instances: "1"\. Expected a value between 2 and 64 .*cohort demo --help\)\n$/
    ],
    ["queue dead", /^cohort queue dead: Missing required argument: channel .*cohort queue dead --help\)\n$/],
    ["frobnicate", /^cohort: Unknown subcommand "frobnicate".*cohort --help\)\n$/],
    ["queue list", /^cohort: COHORT_QUEUE: .* --backend redis or amqp\n$/]
  ] as const) {
    it(`what is wrong with ${args}`, () => refuses({}, args, output))
  }

  it("nothing after the help that a bare command prints", () => refuses({}, "", /SUBCOMMANDS\n(.|\n)*doctor .*\n$/))

  for (const [name, value, output] of [
    ["COHORT_FILES", "/nonexistent", /^cohort: COHORT_FILES: there is no \/nonexistent\n$/],
    ["COHORT_DRAIN_DELAY", "soon", /^cohort: COHORT_DRAIN_DELAY: expected a duration, such as `5 seconds`\n$/],
    ["COHORT_HOST", "256.1.1.1", /^cohort: COHORT_HOST: .*256\.1\.1\.1\n$/],
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense", /^cohort: OTEL_EXPORTER_OTLP_ENDPOINT: expected .*URL.*\n$/]
  ] as const) {
    it(`that ${name} makes no sense`, () => refuses({ [name]: value }, "start --port 0 --instances 1", output))
  }

  it("which port is taken, and what to do", async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const { port } = server.address() as AddressInfo
    try {
      const taken = new RegExp(`^cohort: port ${port} of 127\\.0\\.0\\.1 is taken: .*--port.*\\n$`)
      await refuses({}, `start --port ${port} --instances 1`, taken)
    } finally {
      server.close()
    }
  })

  it("which server is away", () =>
    refuses(
      { REDIS_URL: "redis://127.0.0.1:1", REDIS_TIMEOUT: "1 second" },
      "queue list --backend redis",
      /^cohort: redis is unavailable: no answer within 1000 ms \(connect ECONNREFUSED 127\.0\.0\.1:1\)\n$/
    ))

  it("doctor's: every setting that makes no sense, and not that all could be read", async () => {
    const run = mainWith(
      { ...nothing, COHORT_LOCK_TTL: "soon", COHORT_DRAIN_DELAY: "later", AMQP_HEARTBEAT: "x" },
      ...["doctor", "--backend", "amqp"]
    )
    assert.strictEqual(await run.exited, 1)
    for (const name of ["COHORT_LOCK_TTL", "COHORT_DRAIN_DELAY", "AMQP_HEARTBEAT"]) {
      assert.match(run.output, new RegExp(`^✗ settings: ${name}: expected a duration`, "m"))
    }
    assert.notInclude(run.output, "✓ settings")
    assert.match(run.output, /^cohort: 3 things to see to$/m)
  })

  it("that Redis is away, and ends then", async () => {
    const env = { REDIS_URL: "redis://127.0.0.1:1", REDIS_TIMEOUT: "1 second" }
    const run = mainWith({ ...nothing, ...env }, "queue", "list", "--backend", "redis")
    await until("it says so", () => run.output.endsWith("\n") || undefined)
    const said = performance.now()
    assert.strictEqual(await run.exited, 1, run.output)
    assert.isBelow(performance.now() - said, 1_500)
  })
})
