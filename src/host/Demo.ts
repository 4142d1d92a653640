/**
 * Plays the guide's five scenarios against running instances, through their HTTP
 * APIs only: a cached policy, a field added, an import spread over the instances,
 * a task that fails and is redriven, and a field deleted by two instances at once.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as Option from "effect/Option"
import type { Task } from "../plugins/async-task-manager/index.ts"
import { isEnded } from "../plugins/async-task-manager/Task.ts"
import { Api } from "./Api.ts"
import type { RunningInstance } from "./Host.ts"
import { expect, type Report } from "./Report.ts"

const dataset = "zipcodes.csv"
/** Data rows in the file. */
const datasetRows = 42_049
const importTasks = 8

type Client = HttpApiClient.ForApi<typeof Api>

interface Peer extends RunningInstance {
  readonly api: Client
}

export const play = (
  instances: ReadonlyArray<RunningInstance>,
  report: Report
): Effect.Effect<void, never, HttpClient.HttpClient> =>
  Effect.gen(function* () {
    const peers = yield* Effect.forEach(instances, (instance) =>
      Effect.map(HttpApiClient.make(Api, { baseUrl: instance.url }), (api): Peer => ({ ...instance, api }))
    )
    yield* cachedPolicy(peers, report)
    yield* addedField(peers, report)
    yield* importedDataset(peers, report)
    yield* failedTask(peers, report)
    yield* deletedField(peers, report)
  })

/** Asks until the answer is there; fails, saying so, after 20 seconds. */
const until = <A, E, R>(what: string, ask: Effect.Effect<Option.Option<A>, E, R>): Effect.Effect<A, E | string, R> =>
  Effect.gen(function* () {
    const start = yield* Clock.monotonicTimeNanos
    while (true) {
      const answer = yield* ask
      if (Option.isSome(answer)) return answer.value
      if ((yield* Clock.monotonicTimeNanos) - start > 20_000_000_000n) return yield* Effect.fail(`gave up: ${what}`)
      yield* Effect.sleep("10 millis")
    }
  })

const when = <A>(holds: boolean, value: A): Option.Option<A> => (holds ? Option.some(value) : Option.none())

const ended = (peer: Peer, id: string) =>
  until(
    `task ${id} did not end`,
    Effect.map(peer.api.tasks.get({ params: { id } }), (task) => when(isEnded(task.status), task))
  )

const at = (peers: ReadonlyArray<Peer>, index: number): Peer => peers[index % peers.length]!

const sum = (numbers: ReadonlyArray<number>): number => numbers.reduce((a, b) => a + b, 0)

const list = (peers: ReadonlyArray<Peer>): string => peers.map(({ id }) => id).join(", ")

const elapsed = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<readonly [A, number], E, R> =>
  Effect.gen(function* () {
    const start = yield* Clock.monotonicTimeNanos
    const value = yield* effect
    return [value, Math.round(Number((yield* Clock.monotonicTimeNanos) - start) / 1e6)]
  })

const cachedPolicy = (peers: ReadonlyArray<Peer>, report: Report) =>
  Effect.gen(function* () {
    yield* report.heading("1. A policy, cached once and invalidated everywhere")
    const read = Effect.forEach(peers, (peer) => peer.api.auth.policy(), { concurrency: "unbounded" })
    const loads = Effect.map(read, (answers) => sum(answers.map(({ loads }) => loads)))

    yield* report.step(
      "every instance reads the policy twenty times",
      Effect.gen(function* () {
        yield* Effect.forEach(Array.from({ length: 20 }), () => read, { concurrency: 5, discard: true })
        const count = yield* loads
        yield* expect(count === 1, `the store was asked ${count} times`)
        return `${20 * peers.length} reads on ${list(peers)}; the store was asked once`
      })
    )
    const changer = at(peers, 1)
    yield* report.step(
      `${changer.id} changes the policy`,
      Effect.gen(function* () {
        yield* changer.api.auth.setPolicy({ payload: { tokenSeconds: 900, maxSessions: 2 } })
        const known = yield* Effect.forEach(
          peers,
          (peer) =>
            Effect.map(
              elapsed(
                until(
                  `${peer.id}: the new policy`,
                  Effect.map(peer.api.auth.policy(), ({ policy }) => when(policy.tokenSeconds === 900, policy))
                )
              ),
              ([, millis]) => `${peer.id} ${millis} ms`
            ),
          { concurrency: "unbounded" }
        )
        const count = yield* loads
        yield* expect(count === 2, `the store was asked ${count} times in all`)
        return `known: ${known.join(", ")}; the store was asked once more`
      })
    )
    yield* report.step(
      "a token is revoked",
      Effect.gen(function* () {
        const token = yield* changer.api.auth.issue()
        const before = yield* Effect.forEach(peers, (peer) => peer.api.auth.check({ payload: token }))
        yield* peers[0]!.api.auth.revoke({ payload: token })
        const after = yield* Effect.forEach(peers, (peer) => peer.api.auth.check({ payload: token }))
        yield* expect(
          before.every(({ verdict }) => verdict === "valid") && after.every(({ verdict }) => verdict === "revoked"),
          `before: ${before.map(({ verdict }) => verdict).join(", ")}; after: ${after.map(({ verdict }) => verdict).join(", ")}`
        )
        return `${peers[0]!.id} revoked it; ${list(peers)} refuse it at once`
      })
    )
  })

const addedField = (peers: ReadonlyArray<Peer>, report: Report) =>
  Effect.gen(function* () {
    yield* report.heading("2. A field added on one instance and used on the others")
    const first = peers[0]!
    const others = peers.slice(1)

    const everywhere = (what: string, fields: number) =>
      Effect.forEach(
        peers,
        (peer) =>
          Effect.map(
            elapsed(
              until(
                `${peer.id}: ${what}`,
                peer.api.collections.get({ params: { collection: "places" } }).pipe(
                  Effect.map((collection) => when(collection.fields.length === fields, collection)),
                  Effect.catchTag("CollectionNotFound", () => Effect.succeed(Option.none()))
                )
              )
            ),
            ([, millis]) => `${peer.id} ${millis} ms`
          ),
        { concurrency: "unbounded" }
      )

    yield* report.step(
      `${first.id} creates the collection "places"`,
      Effect.gen(function* () {
        yield* first.api.collections.create({
          payload: {
            name: "places",
            fields: [
              { name: "zip_code", type: "text", required: true },
              { name: "latitude", type: "number", required: true },
              { name: "longitude", type: "number", required: true },
              { name: "city", type: "text", required: true },
              { name: "state", type: "text", required: true },
              { name: "county", type: "text", required: false }
            ]
          }
        })
        return `known: ${(yield* everywhere("places", 6)).join(", ")}`
      })
    )
    const adder = at(peers, 2)
    yield* report.step(
      `${adder.id} adds the field "population", a whole number`,
      Effect.gen(function* () {
        yield* adder.api.collections.addField({
          params: { collection: "places" },
          payload: { name: "population", type: "integer", required: false }
        })
        return `known: ${(yield* everywhere("population", 7)).join(", ")}`
      })
    )
    yield* report.step(
      "the other instances validate rows with it",
      Effect.gen(function* () {
        const place = { zip_code: "0", latitude: 0, longitude: 0, city: "Nowhere", state: "NA", county: null }
        for (const peer of others) {
          const refused = yield* peer.api.collections
            .putRow({ params: { collection: "places", id: "demo" }, payload: { ...place, population: "many" } })
            .pipe(Effect.flip)
          yield* expect(refused._tag === "InvalidRow", `${peer.id} answered ${refused._tag}`)
          const row = yield* peer.api.collections.putRow({
            params: { collection: "places", id: "demo" },
            payload: { ...place, population: "42" }
          })
          yield* expect(row.population === 42, `${peer.id} stored ${JSON.stringify(row)}`)
        }
        return `${list(others)} refuse "many" and take "42"`
      })
    )
  })

const importedDataset = (peers: ReadonlyArray<Peer>, report: Report) =>
  Effect.gen(function* () {
    yield* report.heading(`3. ${datasetRows.toLocaleString("en")} rows imported as tasks spread over the instances`)
    const first = peers[0]!

    yield* report.step(
      `${first.id} starts ${importTasks} tasks for ${dataset}`,
      Effect.gen(function* () {
        const size = Math.ceil(datasetRows / importTasks)
        const ids = yield* Effect.forEach(Array.from({ length: importTasks }), (_, i) =>
          Effect.map(
            first.api.tasks.start({
              payload: {
                type: "import-csv",
                params: { collection: "places", file: dataset, from: i * size + 1, to: (i + 1) * size }
              }
            }),
            ({ id }) => id
          )
        )
        let shown = ""
        const tasks = yield* until(
          "the import did not end",
          Effect.gen(function* () {
            const tasks = yield* Effect.forEach(ids, (id) => first.api.tasks.get({ params: { id } }))
            // One is there from before.
            const rows = (yield* first.api.collections.get({ params: { collection: "places" } })).rows - 1
            const done = tasks.filter(({ status }) => isEnded(status)).length
            const text = `${rows.toLocaleString("en").padStart(6)} rows, ${done} of ${importTasks} tasks done, running on ${running(tasks) || "-"}`
            if (text !== shown) yield* report.progress(text)
            shown = text
            return when(done === importTasks, tasks)
          })
        )
        const failed = tasks.filter(({ status }) => status !== "succeeded")
        yield* expect(failed.length === 0, `failed: ${failed.map(({ error }) => error).join("; ")}`)
        const { rows } = yield* at(peers, 1).api.collections.get({ params: { collection: "places" } })
        yield* expect(rows === datasetRows + 1, `${rows} rows are stored`)
        const perInstance = peers.map((peer) => tasks.filter(({ instance }) => instance === peer.id).length)
        yield* expect(
          peers.length === 1 || perInstance.filter((count) => count > 0).length > 1,
          "all tasks ran on one instance"
        )
        return `every row is stored once; tasks per instance: ${peers.map(({ id }, i) => `${id} ${perInstance[i]}`).join(", ")}`
      })
    )

    yield* report.step(
      "a task is cancelled from an instance that does not run it",
      Effect.gen(function* () {
        yield* first.api.collections.create({
          payload: { name: "scratch", fields: [{ name: "zip_code", type: "text", required: true }] }
        })
        yield* everyoneKnows(peers, "scratch")
        const { id } = yield* first.api.tasks.start({
          payload: { type: "import-csv", params: { collection: "scratch", file: dataset } }
        })
        const task = yield* until(
          "the task did not start",
          Effect.map(first.api.tasks.get({ params: { id } }), (task) =>
            when(task.status === "running" && task.progress.done > 0, task)
          )
        )
        const canceller = peers.find((peer) => peer.id !== task.instance) ?? first
        const { canceled } = yield* canceller.api.tasks.cancel({ params: { id } })
        yield* expect(canceled, "it had ended already")
        const runner = peers.find((peer) => peer.id === task.instance)!
        const [, millis] = yield* elapsed(
          until(
            `${runner.id} did not stop`,
            Effect.map(runner.api.health(), ({ runningTasks }) => when(!runningTasks.includes(id), undefined))
          )
        )
        const after = yield* first.api.tasks.get({ params: { id } })
        const { rows } = yield* first.api.collections.get({ params: { collection: "scratch" } })
        yield* expect(after.status === "canceled" && rows < datasetRows, `${after.status} with ${rows} rows`)
        return `${runner.id} ran it, ${canceller.id} cancelled it; it stopped within ${millis} ms, after ${rows.toLocaleString("en")} rows`
      })
    )
  })

const running = (tasks: ReadonlyArray<Task.Task>): string =>
  [...new Set(tasks.flatMap(({ instance, status }) => (status === "running" && instance !== null ? [instance] : [])))]
    .sort()
    .join(", ")

const everyoneKnows = (peers: ReadonlyArray<Peer>, collection: string) =>
  Effect.forEach(
    peers,
    (peer) =>
      until(
        `${peer.id} does not know "${collection}"`,
        peer.api.collections.get({ params: { collection } }).pipe(
          Effect.map(Option.some),
          Effect.catchTag("CollectionNotFound", () => Effect.succeed(Option.none()))
        )
      ),
    { concurrency: "unbounded", discard: true }
  )

const failedTask = (peers: ReadonlyArray<Peer>, report: Report) =>
  Effect.gen(function* () {
    yield* report.heading("4. A task that fails becomes a dead letter, and is redriven")
    const first = peers[0]!
    const other = at(peers, 2)
    let id = ""

    yield* report.step(
      "a task imports into a collection that does not exist",
      Effect.gen(function* () {
        const started = yield* first.api.tasks.start({
          payload: { type: "import-csv", params: { collection: "stations", file: dataset, to: 1_000 } }
        })
        id = started.id
        const task = yield* ended(first, id)
        yield* expect(task.status === "failed", `it ${task.status}`)
        const dead = yield* until(
          "there is no dead letter",
          Effect.option(other.api.deadLetters.get({ params: { id } }))
        )
        yield* expect(dead.attempts === 2, `it had ${dead.attempts} attempts`)
        return `${dead.attempts} attempts, then a dead letter (${task.error}), seen from ${other.id}`
      })
    )
    yield* report.step(
      `the collection is created, and ${other.id} redrives the dead letter`,
      Effect.gen(function* () {
        yield* first.api.collections.create({
          payload: { name: "stations", fields: [{ name: "zip_code", type: "text", required: true }] }
        })
        yield* everyoneKnows(peers, "stations")
        const { count } = yield* other.api.deadLetters.redrive({ payload: { ids: [id] } })
        yield* expect(count === 1, `${count} were redriven`)
        const task = yield* ended(first, id)
        const { rows } = yield* first.api.collections.get({ params: { collection: "stations" } })
        const left = yield* first.api.deadLetters.list()
        yield* expect(
          task.status === "succeeded" && rows === 1_000 && left.length === 0,
          `it ${task.status}, ${rows} rows, ${left.length} dead letters left`
        )
        return `it succeeded on ${task.instance}: ${rows.toLocaleString("en")} rows, no dead letters left`
      })
    )
  })

const deletedField = (peers: ReadonlyArray<Peer>, report: Report) =>
  Effect.gen(function* () {
    yield* report.heading("5. Two instances delete the same field")
    const [a, b] = [at(peers, 0), at(peers, 1)]

    yield* report.step(
      `${a.id} and ${b.id} delete "county" at the same time`,
      Effect.gen(function* () {
        const remove = (peer: Peer) =>
          elapsed(
            peer.api.collections.removeField({ params: { collection: "places", field: "county" } }).pipe(
              Effect.as("deleted it"),
              Effect.catchTag("FieldNotFound", () => Effect.succeed("found it gone"))
            )
          )
        const [[first, firstMillis], [second, secondMillis]] = yield* Effect.all([remove(a), remove(b)], {
          concurrency: "unbounded"
        })
        yield* expect(
          [first, second].sort().join() === ["deleted it", "found it gone"].join(),
          `${a.id} ${first}, ${b.id} ${second}`
        )
        yield* Effect.forEach(
          peers,
          (peer) =>
            until(
              `${peer.id} still has the field`,
              Effect.map(peer.api.collections.get({ params: { collection: "places" } }), ({ fields }) =>
                when(!fields.some(({ name }) => name === "county"), undefined)
              )
            ),
          { concurrency: "unbounded" }
        )
        const [row] = yield* b.api.collections.rows({ params: { collection: "places" }, query: { limit: 1 } })
        yield* expect(row !== undefined && !("county" in row), `a row still has it: ${JSON.stringify(row)}`)
        return `one after the other: ${a.id} ${first} (${firstMillis} ms), ${b.id} ${second} (${secondMillis} ms); it is gone on ${list(peers)} and in every row`
      })
    )
  })
