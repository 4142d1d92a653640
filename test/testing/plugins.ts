/** The three plugins of this repository as a workload, and what is to hold of them. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Plugin } from "../../src/index.ts"
import { Task, TaskStore, Tasks } from "../../src/plugins/async-task-manager/index.ts"
import { Auth, AuthStore } from "../../src/plugins/auth/index.ts"
import {
  Collections,
  CollectionStore,
  CsvFiles,
  ImportCsv,
  plugin as DataSource
} from "../../src/plugins/data-source-main/index.ts"
import { Invariant } from "../../src/testing/index.ts"

/** What the simulation remembers beside the stores. */
class Notes extends Context.Service<
  Notes,
  {
    readonly tokens: Array<Auth.Token>
    /** Told everywhere to be revoked. */
    readonly revoked: Set<string>
    policy: number
    /** The policy that was told everywhere. */
    toldPolicy: number
    readonly tasks: Array<string>
    /** How tasks ended, when that was first seen. */
    readonly ended: Map<string, string>
  }
>()("test/Notes") {
  static readonly layer = Layer.sync(Notes, () => ({
    ...{ tokens: [], revoked: new Set<string>(), tasks: [], ended: new Map<string, string>() },
    ...{ policy: AuthStore.defaultPolicy.tokenSeconds, toldPolicy: AuthStore.defaultPolicy.tokenSeconds }
  }))
}

const rows = 30
const file = `f0,f1\n${Array.from({ length: rows }, (_, i) => `${i},row ${i}`).join("\n")}`
const files = Layer.succeed(CsvFiles.CsvFiles, {
  size: () => Effect.succeed(file.length),
  read: () => Stream.succeed(new TextEncoder().encode(file))
})

/** Work that takes a while, and fails now and then. */
const Dig = Task.type("dig", {
  params: Schema.Struct({ millis: Schema.Int, fails: Schema.Int }),
  result: Schema.Int,
  maxRetries: 2,
  timeout: "20 seconds"
})
const Digging = Plugin.make("digging", {
  dependsOn: [Tasks.plugin],
  beforeLoad: Tasks.Tasks.use((tasks) =>
    tasks.register(Dig, ({ fails, millis }, { attempt, progress }) =>
      Effect.gen(function* () {
        for (let done = 0; done < 4; done++) {
          yield* Effect.sleep(millis / 4)
          yield* progress({ done, total: 4 })
        }
        if (attempt <= fails) return yield* Effect.fail(new Error("hit a rock"))
        return millis
      })
    )
  )
})

const some = <A>(items: ReadonlyArray<A>) =>
  items.length === 0 ? Effect.interrupt : Effect.map(Random.nextIntBetween(0, items.length - 1), (i) => items[i]!)

const auth = {
  issue: Effect.gen(function* () {
    const { tokens } = yield* Notes
    tokens.push(yield* Auth.Auth.use(({ issue }) => issue))
  }),
  revoke: Effect.gen(function* () {
    const { revoked, tokens } = yield* Notes
    const token = yield* some(tokens)
    yield* Auth.Auth.use(({ revoke }) => revoke(token))
    revoked.add(token.id)
  }),
  check: Effect.gen(function* () {
    const { revoked, tokens } = yield* Notes
    const token = yield* some(tokens)
    const isTold = revoked.has(token.id)
    const verdict = yield* Auth.Auth.use(({ check }) => check(token))
    if (isTold && verdict === "valid") throw new Error(`token ${token.id} is valid after it was revoked`)
  }),
  setPolicy: Effect.gen(function* () {
    const notes = yield* Notes
    const tokenSeconds = ++notes.policy
    yield* Auth.Auth.use(({ setPolicy }) => setPolicy({ tokenSeconds, maxSessions: 5 }))
    notes.toldPolicy = Math.max(notes.toldPolicy, tokenSeconds)
  })
}

const fieldOf = (n: number) => ({ name: `f${n}`, type: "text", required: false }) as const
const collections = {
  create: Collections.Collections.use(({ create }) => create({ name: "orders", fields: [fieldOf(0), fieldOf(1)] })),
  addField: Effect.flatMap(Random.nextIntBetween(0, 4), (n) =>
    Collections.Collections.use(({ addField }) => addField("orders", fieldOf(n)))
  ),
  removeField: Effect.flatMap(Random.nextIntBetween(0, 4), (n) =>
    Collections.Collections.use(({ removeField }) => removeField("orders", `f${n}`))
  )
}

const remember = <E, R>(start: Effect.Effect<string, E, R>) =>
  Effect.gen(function* () {
    const { tasks } = yield* Notes
    tasks.push(yield* start)
  })
const tasks = {
  dig: {
    weight: 2,
    run: Effect.gen(function* () {
      const millis = yield* Random.nextIntBetween(0, 25_000)
      const fails = Math.max(0, (yield* Random.nextIntBetween(0, 6)) - 3)
      yield* remember(Tasks.Tasks.use(({ start }) => start(Dig, { millis, fails })))
    })
  },
  importFile: remember(
    Tasks.Tasks.use(({ start }) => start(ImportCsv.ImportCsv, { collection: "orders", file: "orders.csv" }))
  ),
  cancel: Effect.gen(function* () {
    const { tasks } = yield* Notes
    const id = yield* some(tasks)
    yield* Tasks.Tasks.use(({ cancel }) => cancel(id))
  }),
  redrive: Tasks.Tasks.use(({ redrive }) => redrive("all"))
}

/** Of a field nobody may find two, however many add it at once. */
const fieldsAreUnique = Invariant.always("a collection has no field twice", () =>
  Effect.gen(function* () {
    for (const { fields } of yield* CollectionStore.CollectionStore.use(({ list }) => list)) {
      const names = fields.map(({ name }) => name)
      if (new Set(names).size < names.length) throw new Error(names.join())
    }
  })
)
const policyIsCurrent = Invariant.always("the cached policy is not older than what was told", (cluster) =>
  Effect.gen(function* () {
    const { toldPolicy } = yield* Notes
    for (const { value } of yield* cluster.entries("auth:policy")) {
      const { tokenSeconds } = value as AuthStore.TokenPolicy
      if (tokenSeconds < toldPolicy) throw new Error(`${tokenSeconds} after ${toldPolicy}`)
    }
  })
)
const endsAreFinal = Invariant.always("a task that has succeeded or was canceled stays so", () =>
  Effect.gen(function* () {
    const { ended } = yield* Notes
    for (const { id, status } of yield* TaskStore.TaskStore.use(({ list }) => list({ limit: 1_000 }))) {
      const was = ended.get(id)
      if (was !== undefined && was !== status) throw new Error(`${id} was ${was} and is ${status}`)
      if (status === "succeeded" || status === "canceled") ended.set(id, status)
    }
  })
)
const tasksEnd = Invariant.eventually(
  "every task ends",
  () =>
    Effect.gen(function* () {
      const all = yield* TaskStore.TaskStore.use(({ list }) => list({ limit: 1_000 }))
      const open = all.filter(({ status }) => !Task.isEnded(status))
      if (open.length > 0) throw new Error(open.map(({ id, status }) => `${id} is ${status}`).join())
    }),
  // What was stored and never queued is found by an hourly look.
  { within: "3 hours" }
)
const collectionsConverge = Invariant.converges(
  "every instance knows the same collections",
  Collections.Collections.use(({ list }) => list)
)
const collectionsAreTrue = Invariant.eventually("what an instance knows is what is stored", (cluster) =>
  Effect.gen(function* () {
    const stored = yield* CollectionStore.CollectionStore.use(({ list }) => list)
    const known = yield* cluster.on(
      0,
      Collections.Collections.use(({ list }) => list)
    )
    if (JSON.stringify(stored) !== JSON.stringify(known)) throw new Error(JSON.stringify({ stored, known }))
  })
)

export const plugins = {
  plugins: [Tasks.plugin, Auth.plugin, DataSource, Digging],
  services: Layer.mergeAll(Tasks.layer, Auth.layer, Collections.layer),
  shared: Layer.mergeAll(Notes.layer, AuthStore.layerMemory, TaskStore.layerMemory, CollectionStore.layerMemory, files),
  workload: { ...auth, ...collections, ...tasks },
  invariants: [
    ...Invariant.primitives,
    ...[fieldsAreUnique, policyIsCurrent, endsAreFinal, tasksEnd, collectionsConverge, collectionsAreTrue]
  ]
} as const
