// SPDX-License-Identifier: Apache-2.0
/*
 * Takes the place of libelf.a's elf_error.o, which Debian compiles for executables only (local-exec TLS) and which
 * therefore can't go into a shared library. libbpf wants a text for its warnings, nothing more.
 */
static _Thread_local int last_error;

void __libelf_seterrno(int value)
{
	last_error = value;
}

int elf_errno(void)
{
	int value = last_error;

	last_error = 0;
	return value;
}

const char *elf_errmsg(int error)
{
	return error || last_error ? "not a valid ELF file" : "no error";
}
