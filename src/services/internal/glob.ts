/**
 * Matches text against a glob: `*` any characters, `?` one, a backslash takes
 * away the meaning of the next. Greedy with one point of return, so a match takes
 * at most text × pattern steps whatever the pattern.
 */
export const glob = (pattern: string): ((text: string) => boolean) => {
  const tokens: Array<string | typeof any | typeof one> = []
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i]!
    if (char === "\\" && i + 1 < pattern.length) tokens.push(pattern[++i]!)
    else tokens.push(char === "*" ? any : char === "?" ? one : char)
  }
  return (text) => {
    let t = 0
    let p = 0
    let star = -1
    let resume = 0
    while (t < text.length) {
      const token = tokens[p]
      if (token === any) {
        star = p++
        resume = t
      } else if (token === one || token === text[t]) {
        t++
        p++
      } else if (star >= 0) {
        p = star + 1
        t = ++resume
      } else return false
    }
    while (tokens[p] === any) p++
    return p === tokens.length
  }
}

const any = Symbol()
const one = Symbol()
