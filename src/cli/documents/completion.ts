/** Completion for bash, zsh and fish: short scripts that call `kmesh complete-words`. */

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** Stands for file or folder names, which the shell completes itself. */
export const FILES = ":files";
export const FOLDERS = ":folders";

/**
 * bash splits words at : and =, which are part of HOST:PORT and --flag=value. The script therefore takes the words from
 * the line itself, and removes from the candidates the part that bash regards as an earlier word.
 */
const BASH = String.raw`# bash completion of kmesh, as "kmesh completion bash" prints it
_kmesh() {
  local line=${"$"}{COMP_LINE:0:COMP_POINT} cur candidate before
  local -a words
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  cur=${"$"}{words[-1]}
  before=${"$"}{cur%"${"$"}{cur##*[:=]}"}
  COMPREPLY=()
  while IFS= read -r candidate; do
    candidate=${"$"}{candidate%%$'\t'*}
    case $candidate in
      :files) compopt -o filenames 2> /dev/null; COMPREPLY+=($(compgen -f -- "${"$"}{cur#"$before"}")) ;;
      :folders) compopt -o filenames 2> /dev/null; COMPREPLY+=($(compgen -d -- "${"$"}{cur#"$before"}")) ;;
      *) COMPREPLY+=("${"$"}{candidate#"$before"}") ;;
    esac
  done < <(command kmesh complete-words -- "${"$"}{words[@]:1}" 2> /dev/null)
}
complete -F _kmesh kmesh
`;

const ZSH = String.raw`#compdef kmesh
# zsh completion of kmesh, as "kmesh completion zsh" prints it
_kmesh() {
  local -a described
  local line
  for line in "${"$"}{(@f)$(command kmesh complete-words -- "${"$"}{(@)words[2,CURRENT]}" 2> /dev/null)}"; do
    case $line in
      :files*) _files ;;
      :folders*) _files -/ ;;
      ?*$'\t') described+=("${"$"}{${"$"}{line%%$'\t'*}//:/\\:}") ;;
      ?*) described+=("${"$"}{${"$"}{line%%$'\t'*}//:/\\:}:${"$"}{line#*$'\t'}") ;;
    esac
  done
  (( $#described )) && _describe -t kmesh kmesh described
}
if [[ $funcstack[1] == _kmesh ]]; then _kmesh "$@"; else compdef _kmesh kmesh; fi
`;

const FISH = `# fish completion of kmesh, as "kmesh completion fish" prints it
function __kmesh_complete
  set -l words (commandline -opc) (commandline -ct)
  for line in (command kmesh complete-words -- $words[2..-1] 2> /dev/null)
    switch $line
      case ':files*'
        __fish_complete_path (commandline -ct)
      case ':folders*'
        __fish_complete_directories (commandline -ct)
      case '*'
        echo $line
    end
  end
end
complete -c kmesh -f -a '(__kmesh_complete)'
`;

/** The completion script of a shell. */
export function completionScript(shell: Shell): string {
  return { bash: BASH, zsh: ZSH, fish: FISH }[shell];
}
