"""The kernel for real: what kernel.Kernel asks for, over rtnetlink."""
