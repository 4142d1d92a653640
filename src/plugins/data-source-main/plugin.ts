/**
 * The plugin: keeps the compiled collections equal on every instance, and
 * registers the CSV import.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Plugin from "../../services/Plugin.ts"
import * as Tasks from "../async-task-manager/Tasks.ts"
import { Collections, names, SchemaChanged } from "./Collections.ts"
import * as ImportCsv from "./ImportCsv.ts"

/**
 * @since 0.1.0
 */
export const plugin = Plugin.make(names.name, {
  dependsOn: [Tasks.plugin],
  sync: {
    message: SchemaChanged,
    handle: ({ collection }) => Collections.use((collections) => collections.reload(collection)),
    resync: Collections.use((collections) => collections.reloadAll)
  },
  beforeLoad: Effect.gen(function* () {
    // After subscribing to changes: none can fall between this and the next.
    yield* Collections.use((collections) => collections.reloadAll)
    yield* Tasks.Tasks.use((tasks) => tasks.register(ImportCsv.ImportCsv, ImportCsv.run))
  })
})
