/** The host with what the plugins store in PostgreSQL. */
import { PgClient } from "@effect/sql-pg"
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import * as PostgresServer from "../servers/PostgresServer.ts"
import { killAll, mainWith, request, until, urls } from "./support.ts"

const scope = Effect.runSync(Scope.make())
let database: string

beforeAll(async () => {
  database = await Effect.runPromise(Scope.provide(PostgresServer.database, scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
afterEach(killAll)

const unnamed = {
  COHORT_BACKEND: undefined,
  REDIS_URL: undefined,
  REDIS_SENTINELS: undefined,
  REDIS_CLUSTER: undefined,
  AMQP_URL: undefined,
  AMQP_NODES: undefined
}
const start = (url: string, ...args: ReadonlyArray<string>) =>
  mainWith({ ...unnamed, DATABASE_URL: url }, "start", "--port", "0", ...args)

/** How many rows there are of any app. */
const stored = SqlClient.SqlClient.use((sql) =>
  sql<{ n: number }>`SELECT ((SELECT COUNT(*) FROM cohort_tasks) + (SELECT COUNT(*) FROM cohort_collections)
    + (SELECT COUNT(*) FROM cohort_auth_policies) + (SELECT COUNT(*) FROM cohort_auth_revocations)
    + (SELECT COUNT(*) FROM cohort_outbox))::INTEGER AS n`.pipe(Effect.map(([row]) => row!.n))
)
const count = () =>
  Effect.runPromise(Effect.provide(stored, PgClient.layer({ url: Redacted.make(database), maxConnections: 1 })))

describe("with DATABASE_URL", () => {
  for (const backend of ["memory", "redis"]) {
    it(`npm run demo -- --backend ${backend} plays every scenario, and leaves nothing behind`, {
      timeout: 120_000
    }, async () => {
      const demo = mainWith(
        { ...unnamed, DATABASE_URL: database },
        ...["demo", "--backend", backend, "--instances", "3"]
      )
      assert.strictEqual(await demo.exited, 0, demo.output)
      assert.match(demo.output, /^Cohort demo: 3 instances on .*, data in PostgreSQL$/m)
      assert.include(demo.output, "All 11 steps went as they should.")
      assert.strictEqual(await count(), 0)
    })
  }

  it("what is stored is there when the instances start again, on any backend", { timeout: 120_000 }, async () => {
    const first = start(database, "--instances", "1")
    const [url] = await urls(first, 1)
    const fields = [{ name: "city", type: "text", required: true }]
    assert.strictEqual((await request("POST", `${url}/collections`, { name: "places", fields })).status, 204)
    assert.strictEqual((await request("PUT", `${url}/collections/places/rows/1`, { city: "Rome" })).status, 200)
    first.kill("SIGINT")
    await first.exited
    assert.include(first.output, "data in PostgreSQL")

    const second = start(database, "--backend", "amqp", "--instances", "2")
    const [, b] = await urls(second, 2)
    assert.deepStrictEqual((await request("GET", `${b}/collections/places/rows`)).body, [{ city: "Rome" }])
    const query = await request("POST", `${b}/tasks`, {
      type: "import-csv",
      params: { collection: "places", file: "zipcodes.csv", to: 1_000 }
    })
    await until("the import ends", async () =>
      (await request("GET", `${b}/tasks/${query.body.id}`)).body.status === "succeeded" ? true : undefined
    )
    assert.strictEqual((await request("GET", `${b}/collections/places`)).body.rows, 1_001)
  })

  it("says in one line what is wrong, and no secret", { timeout: 60_000 }, async () => {
    const away = "postgres://someone:s3cret@127.0.0.1:1/places"
    const wrong = [
      [start("nowhere"), /^cohort: DATABASE_URL: must be like postgres:\/\/user:password@host:5432\/database\n$/],
      [start("mysql://someone:s3cret@127.0.0.1/places"), /^cohort: DATABASE_URL: must be like .*\n$/],
      [start(away), /^cohort: DATABASE_URL: .*ECONNREFUSED.*\n$/],
      [start(away, "--backend", "redis"), /^cohort: DATABASE_URL: .*ECONNREFUSED.*\n$/],
      [start(database.replace(/\/\w+$/, "/none")), /^cohort: DATABASE_URL: database "none" does not exist\n$/]
    ] as const
    for (const [host, line] of wrong) {
      assert.strictEqual(await host.exited, 1, host.output)
      assert.match(host.output, line)
      assert.notInclude(host.output, "s3cret")
    }
  })
})
