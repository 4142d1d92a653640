/**
 * Tasks in a SQL database (PostgreSQL): a row each, of the table `cohort_tasks`. Apps share the table unseen.
 *
 * An update is one statement, whose conditions the database checks again when it had to wait for another's.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import * as Struct from "effect/Struct"
import { Instance } from "../../services/Instance.ts"
import type { StoreError } from "../StoreError.ts"
import * as Sql from "../sql.ts"
import { isEnded, Progress, Task, TaskStatus } from "./Task.ts"
import { TaskStore } from "./TaskStore.ts"

const migrations = {
  "1_tasks": SqlClient.use((sql) =>
    Effect.all(
      [
        sql`CREATE TABLE cohort_tasks (
          app TEXT NOT NULL,
          id TEXT NOT NULL,
          number BIGINT GENERATED ALWAYS AS IDENTITY,
          type TEXT NOT NULL,
          params TEXT NOT NULL,
          status TEXT NOT NULL,
          progress TEXT NOT NULL,
          attempts INTEGER NOT NULL,
          instance TEXT,
          result TEXT,
          error TEXT,
          "createdAt" TIMESTAMPTZ NOT NULL,
          "startedAt" TIMESTAMPTZ,
          "endedAt" TIMESTAMPTZ,
          PRIMARY KEY (app, id)
        )`,
        sql`CREATE INDEX cohort_tasks_newest ON cohort_tasks (app, number)`,
        sql`CREATE INDEX cohort_tasks_status ON cohort_tasks (app, status, number)`,
        sql`CREATE INDEX cohort_tasks_ended ON cohort_tasks (app, "endedAt")`
      ],
      { discard: true }
    )
  )
}

const Time = Schema.DateTimeUtcFromDate

/** A task as a row: what is JSON is text, as a database's own JSON takes less than JavaScript's. */
const Row = Schema.Struct({
  ...Task.fields,
  id: Sql.Text,
  type: Sql.Text,
  params: Schema.fromJsonString(Task.fields.params),
  progress: Schema.fromJsonString(Progress),
  instance: Schema.NullOr(Sql.Text),
  result: Schema.NullOr(Schema.fromJsonString(Schema.Json)),
  error: Schema.NullOr(Sql.Text),
  createdAt: Time,
  startedAt: Schema.NullOr(Time),
  endedAt: Schema.NullOr(Time)
})
const encode = Schema.encodeEffect(Row)
const encodeChange = Schema.encodeEffect(Row.mapFields(Struct.map(Schema.optionalKey)))
const decode = Schema.decodeUnknownEffect(Schema.Array(Row))

/**
 * In the database of the `SqlClient`, for all instances of the app. Creates its table.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<TaskStore, StoreError, SqlClient | Instance> = Layer.effect(
  TaskStore,
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const app = Sql.encodeText((yield* Instance).app)
    const store = Sql.failing("task")
    yield* Sql.migrate("tasks", migrations)

    const first = (rows: Effect.Effect<ReadonlyArray<unknown>, unknown>) =>
      store(Effect.map(Effect.flatMap(rows, decode), (tasks) => Option.fromUndefinedOr(tasks[0])))

    return TaskStore.of({
      transaction: Sql.transaction(sql, "task"),
      insert: (task) =>
        store(Effect.flatMap(encode(task), (row) => sql`INSERT INTO cohort_tasks ${sql.insert({ app, ...row })}`)),
      get: (id) => first(sql`SELECT * FROM cohort_tasks WHERE app = ${app} AND id = ${Sql.encodeText(id)}`),
      list: ({ limit = 100, status } = {}) =>
        store(
          Effect.flatMap(
            sql`SELECT * FROM cohort_tasks
              WHERE app = ${app} AND ${status === undefined ? sql`TRUE` : sql`status = ${status}`}
              ORDER BY number DESC LIMIT ${Math.max(0, limit)}`,
            decode
          )
        ),
      update: (id, from, change, attempts) =>
        first(
          Effect.flatMap(
            encodeChange(change),
            (row) => sql`UPDATE cohort_tasks SET ${sql.update({ app, ...row })}
              WHERE app = ${app} AND id = ${Sql.encodeText(id)} AND ${sql.in("status", from)}
              AND ${attempts === undefined ? sql`TRUE` : sql`attempts = ${attempts}`}
              RETURNING *`
          )
        ),
      removeEndedBefore: (time) =>
        store(
          Effect.map(
            sql`DELETE FROM cohort_tasks
              WHERE app = ${app} AND ${sql.in("status", TaskStatus.literals.filter(isEnded))}
              AND "endedAt" < ${new Date(time.epochMilliseconds)} RETURNING 1`,
            (removed) => removed.length
          )
        )
    })
  })
)
